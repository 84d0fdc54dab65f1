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
  let focused = null;
  document.addEventListener("focusin", (event) => { focused = event.target.id || null; });
  new MutationObserver(() => {
    // The frame around the page is a <main> too; the landmark is the one inside, which the skip link leads to.
    for (const frame of document.querySelectorAll("main:not(#main):not([role])")) frame.setAttribute("role", "none");
    for (const id of opened) {
      const closed = document.getElementById(id);
      if (closed && !closed.open) closed.open = true;
    }
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  }).observe(document, { childList: true, subtree: true });
})();
