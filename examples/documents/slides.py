"""A lecture: landscape slides with a title bar, bullets, plots, a diagram and few words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pen import Formula, arrow, new_canvas, plot
from reportlab.lib.colors import HexColor, black, white
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = 400.0, 300.0
FONT = "cmss10"
BLUE, DARK, PALE, GREY = HexColor("#2b5797"), HexColor("#1c3557"), HexColor("#e4ebf5"), HexColor("#6b7480")
TITLE, SPEAKER, PLACE = "Why Footbridges Sway", "R. Castellane", "Structures 3"

Bullet = tuple[int, str]


def frame(canvas: Canvas, number: int, heading: str) -> None:
    """The bars that every slide has."""
    canvas.setFillColor(BLUE)
    canvas.rect(0, HEIGHT - 34, WIDTH, 34, stroke=0, fill=1)
    canvas.setFillColor(white)
    canvas.setFont(FONT, 16)
    canvas.drawString(14, HEIGHT - 23, heading)
    footer(canvas, number)


def footer(canvas: Canvas, number: int) -> None:
    for i, (color, text) in enumerate(
        ((DARK, f"{SPEAKER} ({PLACE})"), (BLUE, TITLE), (DARK, f"Spring term      {number} / 6"))
    ):
        canvas.setFillColor(color)
        canvas.rect(i * WIDTH / 3, 0, WIDTH / 3, 12, stroke=0, fill=1)
        canvas.setFillColor(white)
        canvas.setFont(FONT, 6.5)
        canvas.drawCentredString((i + 0.5) * WIDTH / 3, 4, text)
    canvas.setFillColor(black)


def bullets(canvas: Canvas, lines: Sequence[Bullet], top: float, *, left: float = 26, step: float = 23) -> None:
    """Bullets of two levels, downwards from `top`."""
    y = top
    for level, text in lines:
        x = left + 18 * level
        canvas.setFillColor(BLUE)
        if level:
            canvas.rect(x - 9, y + 2, 4, 4, stroke=0, fill=1)
        else:
            canvas.circle(x - 8, y + 4.5, 2.7, stroke=0, fill=1)
        canvas.setFillColor(black)
        canvas.setFont(FONT, 11 if level else 13)
        canvas.drawString(x, y, text)
        y -= step - 4 * level


def opening(canvas: Canvas) -> None:
    canvas.setFillColor(PALE)
    canvas.roundRect(36, 158, WIDTH - 72, 62, 7, stroke=0, fill=1)
    canvas.setFillColor(DARK)
    canvas.setFont(FONT, 24)
    canvas.drawCentredString(WIDTH / 2, 192, TITLE)
    canvas.setFont(FONT, 13)
    canvas.drawCentredString(WIDTH / 2, 170, "Lecture 9: resonance, damping and pedestrians")
    canvas.setFillColor(black)
    canvas.drawCentredString(WIDTH / 2, 124, "Rosa Castellane")
    canvas.setFont(FONT, 10.5)
    canvas.drawCentredString(WIDTH / 2, 104, "Department of Structures, University of Millhaven")
    canvas.drawCentredString(WIDTH / 2, 78, "Spring term, week nine")
    footer(canvas, 1)


def outline(canvas: Canvas) -> None:
    frame(canvas, 2, "Last time, and today")
    bullets(
        canvas,
        (
            (0, "Beams have natural frequencies"),
            (1, "stiffness up, mass down"),
            (1, "a deck of 80 m: about 1 Hz"),
            (0, "People walk at 2 Hz, but push sideways at 1 Hz"),
            (0, "Today:"),
            (1, "what happens when both agree"),
            (1, "why walkers fall into step"),
            (1, "how much damping is enough"),
        ),
        226,
    )


def oscillator(canvas: Canvas) -> None:
    frame(canvas, 3, "One mode is an oscillator")
    Formula(r"m \ddot{x} + c \dot{x} + k x = F_0 \cos \omega t", 19, family="cm").draw(canvas, 92, 222)
    bullets(canvas, ((0, "Natural frequency and damping ratio:"),), 186)
    Formula(r"\omega_0 = \sqrt{\dfrac{k}{m}}, \qquad \zeta = \dfrac{c}{2 \sqrt{k m}}", 16, family="cm").draw(
        canvas, 118, 146
    )
    bullets(canvas, ((0, "At resonance the deck moves by"),), 98)
    Formula(r"x_{\max} = \dfrac{F_0}{2 \zeta k}", 16, family="cm").draw(canvas, 150, 56)
    canvas.setFillColor(HexColor("#b03a2e"))
    canvas.setFont(FONT, 11)
    canvas.drawString(252, 56, "half the damping, twice")
    canvas.drawString(252, 43, "the motion")


def resonance(canvas: Canvas) -> None:
    frame(canvas, 4, "Response against frequency")
    ratios = [i / 40 for i in range(1, 101)]
    lines = [[(r, 1 / math.hypot(1 - r * r, 2 * zeta * r)) for r in ratios] for zeta in (0.05, 0.15, 0.4)]
    plot(
        canvas,
        (58, 62, 300, 170),
        lines,
        x_range=(0, 2.5),
        y_range=(0, 10),
        x_label="forcing frequency / natural frequency",
        y_label="amplification",
        font=FONT,
        size=9,
        ticks=(5, 5),
    )
    for i, (color, text) in enumerate((("#1f4e9c", "5 % damping"), ("#c0392b", "15 %"), ("#2e7d32", "40 %"))):
        canvas.setStrokeColor(HexColor(color))
        canvas.setLineWidth(2)
        canvas.line(262, 216 - 15 * i, 282, 216 - 15 * i)
        canvas.setFont(FONT, 9.5)
        canvas.drawString(288, 213 - 15 * i, text)
    canvas.setStrokeColor(black)


def feedback(canvas: Canvas) -> None:
    frame(canvas, 5, "Walkers close the loop")
    canvas.setLineWidth(1.2)
    for x, y, text in (
        (34, 190, "deck sways"),
        (150, 190, "walkers adapt"),
        (266, 190, "steps agree"),
        (150, 124, "force grows"),
    ):
        canvas.setFillColor(PALE)
        canvas.roundRect(x, y, 100, 34, 6, fill=1)
        canvas.setFillColor(black)
        canvas.setFont(FONT, 12)
        canvas.drawCentredString(x + 50, y + 13, text)
    arrow(canvas, 134, 207, 149, 207, 6)
    arrow(canvas, 250, 207, 265, 207, 6)
    canvas.line(316, 190, 316, 141)
    arrow(canvas, 316, 141, 251, 141, 6)
    canvas.line(150, 141, 84, 141)
    arrow(canvas, 84, 141, 84, 189, 6)
    bullets(
        canvas,
        (
            (0, "Below a critical number of people: nothing"),
            (0, "Above it: motion grows without being pushed harder"),
            (0, "Adding damping moves the threshold, in proportion"),
        ),
        92,
        step=25,
    )


def summary(canvas: Canvas) -> None:
    frame(canvas, 6, "What to remember")
    bullets(
        canvas,
        (
            (0, "Resonance is limited by damping alone"),
            (0, "People are not a fixed load"),
            (0, "Dampers on the deck:"),
            (1, "viscous: everywhere"),
            (1, "tuned mass: one frequency"),
        ),
        226,
    )
    canvas.setFont(FONT, 9)
    for i, (name, before, after) in enumerate((("North Weir", 70, 12), ("Mill Lane", 52, 18), ("Old Lock", 31, 9))):
        left = 250 + 46 * i
        for shift, value, color in ((0, before, "#c0392b"), (16, after, "#2b5797")):
            canvas.setFillColor(HexColor(color))
            canvas.rect(left + shift, 84, 14, value * 1.4, stroke=0, fill=1)
        canvas.setFillColor(black)
        canvas.drawCentredString(left + 15, 73, name)
    canvas.line(244, 84, 388, 84)
    canvas.drawCentredString(316, 58, "sway in mm, before and after dampers")
    canvas.setFillColor(GREY)
    canvas.setFont(FONT, 11)
    canvas.drawString(26, 34, "Next week: wind. Read chapter 7; bring your simulation.")


def draw(path: Path) -> None:
    """Write the slides."""
    pages: tuple[Callable[[Canvas], None], ...] = (opening, outline, oscillator, resonance, feedback, summary)
    canvas = new_canvas(path, (WIDTH, HEIGHT), TITLE)
    for page in pages:
        page(canvas)
        canvas.showPage()
    canvas.save()
