// Theme, filters that apply on change, and focus that survives a live update. Nothing is fetched from elsewhere.
(() => {
  const root = document.documentElement;
  root.lang ||= "en";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => { root.dataset.theme = localStorage.getItem("mq-theme") || (dark.matches ? "dark" : "light"); };
  show();
  dark.addEventListener("change", show);
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element) || !event.target.closest("[data-theme-toggle]")) return;
    localStorage.setItem("mq-theme", root.dataset.theme === "dark" ? "light" : "dark");
    show();
  });
  document.addEventListener("change", (event) => {
    const form = event.target instanceof Element && event.target.closest("form[data-auto]");
    if (form) submit(form);
  });
  document.addEventListener("submit", (event) => {
    if (event.target.matches("form[data-auto]")) { event.preventDefault(); submit(event.target); }
  });
  const submit = (form) => {  // only what is set goes into the address
    const chosen = [...new FormData(form)].filter(([, value]) => value !== "");
    location.href = form.getAttribute("action") + (chosen.length ? "?" + new URLSearchParams(chosen) : "");
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = { "/": "[data-search]", o: "nav a[href^='/']", t: "nav a[href^='/threads']", c: "nav a[href^='/compare']" }[event.key];
    const element = target && document.querySelector(target);
    if (!element) return;
    event.preventDefault();
    if (event.key === "/") element.focus(); else element.click();
  });
  const opened = new Set();  // what the reader opened stays open when the page is updated
  document.addEventListener("toggle", (event) => {
    if (event.target.id) opened[event.target.open ? "add" : "delete"](event.target.id);
  }, true);
  const switched = new Map();  // and so does what was switched on or off
  document.addEventListener("change", (event) => {
    if (event.target.type === "checkbox" && event.target.id) switched.set(event.target.id, event.target.checked);
  });
  const age = (seconds) => seconds < 60 ? `${Math.floor(seconds)} s` : seconds < 3600 ? `${Math.floor(seconds / 60)} min`
    : seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
  const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  setInterval(() => {
    const lost = window.socket !== undefined && !window.socket.connected;
    for (const state of document.querySelectorAll(".live")) {
      state.dataset.state = lost ? "lost" : "live";
      put(state.querySelector("[data-state-text]"), lost ? "Connection lost, trying again" : "Live");
    }
    for (const time of document.querySelectorAll("[data-age]")) {
      put(time, `${age(Math.max(0, (Date.now() - new Date(time.dateTime)) / 1000))} ago`);
    }
  }, 500);
  let focused = null;
  document.addEventListener("focusin", (event) => { focused = event.target.id || null; });
  new MutationObserver(() => {
    // The frame around the page is a <main> too; the landmark is the one inside, which the skip link leads to.
    for (const frame of document.querySelectorAll("main:not(#main):not([role])")) frame.setAttribute("role", "none");
    for (const id of opened) {
      const closed = document.getElementById(id);
      if (closed && !closed.open) closed.open = true;
    }
    for (const [id, checked] of switched) {
      const box = document.getElementById(id);
      if (box && box.checked !== checked) box.checked = checked;
    }
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  }).observe(document, { childList: true, subtree: true });
})();
