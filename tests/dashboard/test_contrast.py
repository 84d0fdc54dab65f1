"""Colours of the pages against what they stand on: WCAG 2.2, 4.5 for text and 3 for what a chart is read by."""

from __future__ import annotations

import re

import pytest

from mixquant_agents.dashboard.report import SHEET

Colour = tuple[float, float, float]

TEXT = ("ink", "soft", "accent", "bad", "good", "warn", "side-a", "side-b")
GRAPHICS = ("queue", "prefill", "delivery", "decode", "tool", "unknown", "gap", "cached", "exact", "side-a", "side-b")


def colours(theme: str) -> dict[str, Colour]:
    sheet = SHEET.read_text(encoding="utf-8")
    light, dark = re.findall(r":root[^{]*\{(.*?)\n\}", sheet, re.DOTALL)[:2]
    named = re.findall(r"--([\w-]+): #([0-9a-f]{6});", light + (dark if theme == "dark" else ""))
    return {name: (int(value[:2], 16), int(value[2:4], 16), int(value[4:], 16)) for name, value in named}


def luminance(colour: Colour) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(front: Colour, back: Colour, share: float) -> Colour:
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(front, back, strict=True))
    return red, green, blue


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((0x76, 0x76, 0x76), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read_on_what_they_stand_on(theme: str) -> None:
    named = colours(theme)
    grounds = {name: named[name] for name in ("paper", "panel", "hover", "warn-paper")}
    weak = {
        (text, ground): round(contrast(named[text], colour), 2)
        for text in TEXT
        for ground, colour in grounds.items()
        if contrast(named[text], colour) < 4.5
    }
    # What was taken out of a prompt, and what was put in, have tinted grounds (app.css, del and ins).
    for tint, share in (("bad", 0.18), ("good", 0.20)):
        ratio = contrast(named["ink"], mixed(named[tint], named["panel"], share))
        if ratio < 4.5:
            weak["ink", tint] = round(ratio, 2)
    weak |= {
        (graphic, ground): round(contrast(named[graphic], grounds[ground]), 2)
        for graphic in GRAPHICS
        for ground in ("paper", "panel")
        if contrast(named[graphic], grounds[ground]) < 3
    }
    assert not weak
