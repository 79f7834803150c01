"""The line drawings of `datasheet.py`: pin-out, typical application, block diagram, package outline."""

from __future__ import annotations

from collections.abc import Sequence

from pen import arrow
from reportlab.pdfgen.canvas import Canvas


def chip(canvas: Canvas, x: float, y: float, pins: Sequence[str]) -> None:
    """The pin-out of eight named pins, seen from above."""
    canvas.setLineWidth(1)
    canvas.rect(x + 40, y, 84, 112)
    canvas.arc(x + 74, y + 104, x + 90, y + 120, 180, 180)
    canvas.circle(x + 50, y + 98, 3)
    canvas.setDash(3, 2)
    canvas.rect(x + 58, y + 26, 48, 60)
    canvas.setDash()
    canvas.setFont("Helvetica", 7.4)
    canvas.drawCentredString(x + 82, y + 58, "EXPOSED")
    canvas.drawCentredString(x + 82, y + 48, "PAD")
    for i in range(4):
        level = y + 90 - 26 * i
        for left, pin, side in ((x + 26, i, -1), (x + 124, 7 - i, 1)):
            canvas.rect(left, level, 14, 8)
            canvas.drawCentredString(left + 7, level + 1.6, str(pin + 1))
            if side < 0:
                canvas.drawRightString(left - 4, level + 1.6, pins[pin])
            else:
                canvas.drawString(left + 18, level + 1.6, pins[pin])


def circuit(canvas: Canvas, x: float, y: float) -> None:
    """The typical application: converter, inductor, capacitors, divider."""
    canvas.saveState()
    canvas.translate(x, y)
    canvas.setLineWidth(0.9)
    canvas.setFont("Helvetica", 7.4)
    canvas.rect(150, 40, 110, 96)
    canvas.setFont("Helvetica-Bold", 10)
    canvas.drawCentredString(205, 84, "QD3117")
    canvas.setFont("Helvetica", 7.4)
    for level, left, right in ((122, "VIN", "BST"), (100, "EN", "SW"), (72, "SYNC", "FB"), (50, "GND", "PG")):
        canvas.drawString(154, level - 2, left)
        canvas.drawRightString(256, level - 2, right)
    canvas.lines(
        [
            (40, 122, 150, 122),
            (120, 122, 120, 100),
            (120, 100, 150, 100),
            (150, 50, 130, 50),
            (130, 50, 130, 14),
            (150, 72, 130, 72),
            (130, 72, 130, 50),
            (260, 122, 282, 122),
            (282, 122, 282, 118),
            (260, 100, 300, 100),
            (282, 112, 282, 100),
            (260, 72, 392, 72),
            (260, 50, 300, 50),
        ]
    )
    canvas.lines([(276, 118, 288, 118), (276, 112, 288, 112)])
    for i in range(4):  # inductor
        canvas.arc(300 + 11 * i, 94, 311 + 11 * i, 106, 0, 180)
    canvas.line(344, 100, 460, 100)
    for cx, top in ((78, 122), (430, 100)):  # capacitors to ground
        canvas.lines([(cx, top, cx, 62), (cx - 9, 62, cx + 9, 62), (cx - 9, 57, cx + 9, 57), (cx, 57, cx, 14)])
    for low, high in ((72, 100), (14, 72)):  # divider
        middle = (low + high) / 2
        canvas.lines([(392, low, 392, middle - 9), (392, middle + 9, 392, high)])
        canvas.rect(388, middle - 9, 8, 18)
    canvas.line(40, 14, 460, 14)
    canvas.lines([(205, 14, 205, 8), (197, 8, 213, 8), (200, 5, 210, 5), (203, 2, 207, 2)])
    for text, tx, ty in (
        ("VIN 12 V", 4, 120),
        ("10 µF", 50, 66),
        ("100 nF", 290, 126),
        ("10 µH", 311, 86),
        ("VOUT 5 V", 464, 98),
        ("52.3 k", 402, 84),
        ("10 k", 402, 41),
        ("22 µF", 442, 58),
        ("to logic", 304, 48),
    ):
        canvas.drawString(tx, ty, text)
    canvas.restoreState()


def blocks(canvas: Canvas, x: float, y: float) -> None:
    """What is inside, in boxes."""
    canvas.setLineWidth(0.8)
    canvas.rect(x, y, 512, 168)
    canvas.setFont("Helvetica", 7.2)
    boxes = (
        (20, 120, "Enable"),
        (20, 70, "Reference"),
        (20, 20, "Soft start"),
        (140, 70, "Error amplifier"),
        (140, 20, "Compensation"),
        (260, 120, "Oscillator"),
        (260, 70, "Comparator"),
        (260, 20, "Current sense"),
        (380, 120, "High-side driver"),
        (380, 70, "Control logic"),
        (380, 20, "Low-side driver"),
    )
    for left, low, text in boxes:
        canvas.rect(x + left, y + low, 84, 30)
        canvas.drawCentredString(x + left + 42, y + low + 12, text)
    for x0, y0, x1, y1 in (
        (104, 85, 140, 85),
        (224, 85, 260, 85),
        (344, 85, 380, 85),
        (62, 120, 62, 101),
        (62, 50, 62, 69),
        (182, 50, 182, 69),
        (302, 120, 302, 101),
        (302, 50, 302, 69),
        (422, 101, 422, 119),
        (422, 69, 422, 51),
    ):
        arrow(canvas, x + x0, y + y0, x + x1, y + y1)
    for i, pin in enumerate(("EN", "FB", "SYNC")):
        canvas.drawString(x + 140 * i + 24, y + 157, pin)
    for low, pin in ((132, "SW"), (32, "GND")):
        canvas.line(x + 464, y + low + 3, x + 512, y + low + 3)
        canvas.drawString(x + 484, y + low + 6, pin)


def outline(canvas: Canvas) -> None:
    """The package from above and from the side, with its dimensions."""
    canvas.setLineWidth(1)
    canvas.rect(150, 480, 150, 120)
    canvas.rect(186, 512, 78, 56)
    canvas.circle(162, 588, 4)
    for i in range(4):
        for y in (600, 456):
            canvas.rect(160 + 36 * i, y, 14, 24)
    canvas.rect(380, 510, 130, 30)
    canvas.lines(
        [
            (380, 516, 366, 516),
            (366, 516, 356, 504),
            (356, 504, 346, 504),
            (510, 516, 524, 516),
            (524, 516, 534, 504),
            (534, 504, 544, 504),
        ]
    )
    canvas.setLineWidth(0.4)
    canvas.setFont("Helvetica", 7.4)
    for x0, y0, x1, y1, text, tx, ty in (
        (150, 642, 300, 642, "D", 222, 646),
        (124, 480, 124, 600, "E1", 108, 538),
        (340, 456, 340, 456, "", 0, 0),
        (318, 456, 318, 624, "E", 322, 536),
        (346, 490, 544, 490, "E", 442, 480),
        (560, 504, 560, 540, "A", 564, 520),
    ):
        if text:
            arrow(canvas, x0, y0, x1, y1)
            arrow(canvas, x1, y1, x0, y0)
            canvas.drawString(tx, ty, text)
    canvas.lines(
        [
            (150, 604, 150, 648),
            (300, 604, 300, 648),
            (118, 480, 148, 480),
            (118, 600, 148, 600),
            (302, 456, 324, 456),
            (302, 624, 324, 624),
        ]
    )
