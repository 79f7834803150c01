"""A component's data sheet: features, pin-out, electrical characteristics, curves, package drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pen import new_canvas, plot, style
from reportlab.lib.colors import HexColor, black, white
from reportlab.lib.pagesizes import letter
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, Table
from schematics import blocks, chip, circuit, outline

WIDTH, HEIGHT = letter
LEFT, RIGHT = 50.0, letter[0] - 50
TEAL, LIGHT = HexColor("#00636b"), HexColor("#dcebec")
BODY = style("Helvetica", 8.4, 10.6)
BULLET = style("Helvetica", 8.4, 10.6, leftIndent=10, bulletIndent=1)
FINE = style("Helvetica", 6.4, 7.8)

FEATURES = (
    "Input range 3.0 V to 36 V, 40 V transients", "1.5 A continuous output current", "Quiescent current 9 µA (typ.)",
    "Fixed 400 kHz switching, synchronisable", "Peak efficiency 94 % at 12 V in, 5 V out",
    "Power-good output and precision enable",
    "Soft start, hiccup and thermal protection", "8-pin power package, 4.9 mm × 3.9 mm",
)  # fmt: skip
USES = (
    "Industrial sensors and field buses",
    "Building automation",
    "Battery chargers",
    "Lighting control",
    "Drones and small robots",
)
DESCRIPTION = (
    "The QD3117 is a synchronous step-down converter for supplies that are long, noisy and not to be trusted. A "
    "current-mode loop "
    "with internal compensation needs six external parts. Below 80 mA the device skips pulses and draws as little as "
    "9 µA, so that "
    "a sensor can stay awake on two coin cells. The enable threshold is accurate to 3 % and doubles as an "
    "under-voltage lock-out."
)
PINS = (
    ("1", "BST", "I", "Bootstrap supply of the high-side gate. 100 nF to SW."),
    ("2", "VIN", "P", "Supply. Bypass with 10 µF close to the pin."),
    ("3", "EN", "I", "Enable. Rising threshold 1.20 V; do not leave open."),
    ("4", "SYNC", "I", "External clock, 300 kHz to 600 kHz; ground if unused."),
    ("5", "FB", "I", "Feedback. Regulates to 0.800 V."),
    ("6", "PG", "O", "Power good, open drain, low outside ± 8 %."),
    ("7", "GND", "P", "Ground. Connect to the exposed pad."),
    ("8", "SW", "P", "Switch node. Keep the copper area small."),
)
MAXIMA = (
    ("Supply voltage VIN", "−0.3", "40", "V"),
    ("Switch node SW", "−0.6", "VIN + 0.3", "V"),
    ("Enable EN", "−0.3", "40", "V"),
    ("Feedback, SYNC, PG", "−0.3", "5.5", "V"),
    ("Bootstrap BST to SW", "−0.3", "5.5", "V"),
    ("Junction temperature", "−40", "150", "°C"),
    ("Storage temperature", "−55", "150", "°C"),
    ("Discharge, human body", "", "2000", "V"),
)
ELECTRICAL = (
    "SUPPLY", ("IQ", "Quiescent current", "no load, not switching", "", "9", "15", "µA"), ("ISD", "Shutdown current",
    "EN = 0 V", "", "0.8", "2", "µA"),
    ("VUV", "Under-voltage lock-out", "VIN rising", "2.70", "2.82", "2.95", "V"), ("VUVH", "Hysteresis", "", "", "180",
    "", "mV"),
    "REFERENCE", ("VFB", "Feedback voltage", "TJ = 25 °C", "0.792", "0.800", "0.808", "V"), ("", "", "−40 to 125 °C",
    "0.788", "0.800", "0.812", "V"),
    ("IFB", "Feedback leakage", "VFB = 0.8 V", "−50", "", "50", "nA"), ("dVL", "Line regulation", "5 V to 36 V", "",
    "0.02", "0.05", "%/V"),
    "SWITCHES", ("RHS", "High-side resistance", "ISW = 0.5 A", "", "180", "310", "mohm"), ("RLS",
    "Low-side resistance", "ISW = 0.5 A", "", "95", "170", "mohm"),
    ("ILIM", "Current limit", "peak", "2.0", "2.5", "3.0", "A"), ("tON", "Minimum on-time", "", "", "75", "100", "ns"),
    ("tOFF", "Minimum off-time", "", "", "110", "150", "ns"),
    "OSCILLATOR", ("fSW", "Frequency", "", "360", "400", "440", "kHz"), ("fSYNC", "Synchronisation range", "", "300",
    "", "600", "kHz"),
    ("tSS", "Soft-start time", "10 % to 90 %", "2.2", "3.5", "4.8", "ms"),
    "LOGIC", ("VEN", "Enable threshold", "rising", "1.16", "1.20", "1.24", "V"), ("VENH", "Enable hysteresis", "", "",
    "110", "", "mV"),
    ("VPG", "Power-good threshold", "VFB rising", "90", "92", "94", "%"), ("VOL", "PG low level", "1 mA", "", "0.1",
    "0.3", "V"),
    "THERMAL", ("TSD", "Shutdown", "TJ rising", "150", "165", "", "°C"), ("TSDH", "Hysteresis", "", "", "20", "", "°C"),
)  # fmt: skip
RULES = [
    ("FONT", (0, 0), (-1, -1), "Helvetica", 7.6),
    ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 7.6),
    ("GRID", (0, 0), (-1, -1), 0.4, black),
    ("BACKGROUND", (0, 0), (-1, 0), LIGHT),
    ("TOPPADDING", (0, 0), (-1, -1), 2),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 2.4),
]


def frame(canvas: Canvas, number: int) -> None:
    """Logo, part number and footer."""
    canvas.setFillColor(TEAL)
    canvas.circle(LEFT + 11, HEIGHT - 44, 11, stroke=0, fill=1)
    canvas.rect(LEFT + 13, HEIGHT - 60, 10, 6, stroke=0, fill=1)
    canvas.setFillColor(white)
    canvas.circle(LEFT + 11, HEIGHT - 44, 5, stroke=0, fill=1)
    canvas.setFillColor(TEAL)
    canvas.setFont("Helvetica-Bold", 15)
    canvas.drawString(LEFT + 30, HEIGHT - 46, "QUILLON")
    canvas.setFont("Helvetica", 7)
    canvas.drawString(LEFT + 31, HEIGHT - 56, "POWER DEVICES")
    canvas.setFillColor(black)
    canvas.setFont("Helvetica-Bold", 16)
    canvas.drawRightString(RIGHT, HEIGHT - 48, "QD3117")
    canvas.setLineWidth(1.6)
    canvas.line(LEFT, HEIGHT - 66, RIGHT, HEIGHT - 66)
    canvas.setLineWidth(0.6)
    canvas.line(LEFT, 46, RIGHT, 46)
    canvas.setFont("Helvetica", 7)
    canvas.drawString(LEFT, 36, "QD3117 Rev. C")
    canvas.drawCentredString(WIDTH / 2, 36, "Quillon Power Devices. Specifications may change without notice.")
    canvas.drawRightString(RIGHT, 36, f"Page {number} of 5")


def heading(canvas: Canvas, text: str, x: float, y: float) -> None:
    canvas.setFillColor(TEAL)
    canvas.setFont("Helvetica-Bold", 11)
    canvas.drawString(x, y, text)
    canvas.setFillColor(black)


def place(canvas: Canvas, flowable: Paragraph | Table, x: float, top: float, width: float) -> float:
    """Draw with the upper left corner at (x, top); return the lower edge."""
    _, height = flowable.wrap(width, HEIGHT)
    flowable.drawOn(canvas, x, top - height)
    return float(top - height)


def table(rows: Sequence[Sequence[str]], widths: Sequence[float]) -> Table:
    return Table(rows, colWidths=widths, style=RULES)


def first(canvas: Canvas) -> None:
    canvas.setFont("Helvetica-Bold", 17)
    canvas.drawString(LEFT, HEIGHT - 92, "36 V, 1.5 A Step-Down Converter with 9 µA Supply Current")
    heading(canvas, "Features", LEFT, HEIGHT - 118)
    y = HEIGHT - 122
    for text in FEATURES:
        y = place(canvas, Paragraph(text, BULLET, bulletText="•"), LEFT, y - 2, 245)
    heading(canvas, "Applications", LEFT, y - 18)
    y -= 22
    for text in USES:
        y = place(canvas, Paragraph(text, BULLET, bulletText="•"), LEFT, y - 2, 245)
    heading(canvas, "Description", 316, HEIGHT - 118)
    lower = place(canvas, Paragraph(DESCRIPTION, BODY), 316, HEIGHT - 124, 246)
    rows = [
        ["Order code", "Output", "Package", "Marking"],
        ["QD3117-ADJ", "adjustable", "PSO-8", "31A"],
        ["QD3117-33", "3.3 V", "PSO-8", "31C"],
        ["QD3117-50", "5.0 V", "PSO-8", "31E"],
    ]
    place(canvas, table(rows, [72, 60, 57, 57]), 316, lower - 14, 246)
    heading(canvas, "Typical Application", LEFT, 440)
    canvas.setLineWidth(0.5)
    canvas.rect(LEFT, 252, RIGHT - LEFT, 178)
    circuit(canvas, LEFT + 4, 272)
    heading(canvas, "Efficiency", LEFT, 226)
    amps = [i / 40 for i in range(1, 61)]
    curves = [
        [(a, 95 - loss / (a * 12 + 0.4) - 2.2 * a * k) for a in amps] for k, loss in ((1, 6), (1.4, 9), (1.8, 15))
    ]
    plot(
        canvas,
        (LEFT + 30, 78, 210, 138),
        curves,
        x_range=(0, 1.5),
        y_range=(50, 100),
        x_label="load current (A)",
        y_label="efficiency (%)",
        ticks=(6, 5),
    )
    heading(canvas, "Note", 330, 226)
    place(
        canvas,
        Paragraph(
            "Curves from top to bottom: supply of 8 V, 12 V and 24 V, output 5 V, inductor 10 µH. "
            "Measured on the "
            "evaluation board QD3117-EVB at 25 °C in still air.",
            BODY,
        ),
        330,
        220,
        232,
    )


def second(canvas: Canvas) -> None:
    heading(canvas, "Pin Configuration (top view)", LEFT, HEIGHT - 90)
    chip(canvas, LEFT + 160, HEIGHT - 222, [pin[1] for pin in PINS])
    heading(canvas, "Pin Functions", LEFT, HEIGHT - 252)
    y = place(canvas, table([("Pin", "Name", "Type", "Function"), *PINS], [36, 60, 40, 376]), LEFT, HEIGHT - 260, 512)
    heading(canvas, "Absolute Maximum Ratings", LEFT, y - 26)
    y = place(canvas, table([("Parameter", "Min", "Max", "Unit"), *MAXIMA], [272, 80, 100, 60]), LEFT, y - 34, 512)
    y = place(
        canvas,
        Paragraph(
            "Stresses beyond these ratings may damage the device for good. They are no operating "
            "conditions; exposure for "
            "long periods shortens its life. All voltages refer to GND.",
            FINE,
        ),
        LEFT,
        y - 6,
        512,
    )
    heading(canvas, "Thermal Data", LEFT, y - 24)
    rows = [
        ("Symbol", "Parameter", "Board", "Value", "Unit"),
        ("Rth(JA)", "Junction to ambient", "four layers", "41", "K/W"),
        ("Rth(JC)", "Junction to pad", "", "4.8", "K/W"),
        ("Psi(JT)", "Junction to top", "four layers", "2.1", "K/W"),
    ]
    place(canvas, table(rows, [60, 212, 90, 90, 60]), LEFT, y - 32, 512)


def third(canvas: Canvas) -> None:
    heading(canvas, "Electrical Characteristics", LEFT, HEIGHT - 90)
    y = place(
        canvas,
        Paragraph("VIN = 12 V, VEN = 3 V, TJ = −40 °C to 125 °C unless noted; typical values at 25 °C.", BODY),
        LEFT,
        HEIGHT - 94,
        512,
    )
    rows: list[Sequence[str]] = [("Symbol", "Parameter", "Conditions", "Min", "Typ", "Max", "Unit")]
    rows += [(row,) + ("",) * 6 if isinstance(row, str) else row for row in ELECTRICAL]
    grid = table(rows, [48, 150, 134, 44, 44, 44, 48])
    for i, row in enumerate(ELECTRICAL, 1):
        if isinstance(row, str):
            grid.setStyle(
                [
                    ("SPAN", (0, i), (-1, i)),
                    ("BACKGROUND", (0, i), (-1, i), LIGHT),
                    ("FONT", (0, i), (-1, i), "Helvetica-Bold", 7.4),
                ]
            )
    grid.setStyle([("ALIGN", (3, 0), (-1, -1), "CENTER")])
    y = place(canvas, grid, LEFT, y - 8, 512)
    place(
        canvas,
        Paragraph(
            "(1) Tested at 25 °C; limits over temperature are guaranteed by design. (2) Not tested in "
            "production. (3) The device "
            "skips pulses below about 80 mA; ripple is then up to 30 mV.",
            FINE,
        ),
        LEFT,
        y - 6,
        512,
    )

    heading(canvas, "Functional Block Diagram", LEFT, 244)
    blocks(canvas, LEFT, 66)


def fourth(canvas: Canvas) -> None:
    heading(canvas, "Typical Characteristics", LEFT, HEIGHT - 90)
    xs = [i / 50 for i in range(51)]
    panels: tuple[
        tuple[str, str, str, tuple[float, float], tuple[float, float], Sequence[Callable[[float], float]]], ...
    ] = (
        (
            "Quiescent current",
            "supply (V)",
            "µA",
            (0, 40),
            (0, 20),
            (lambda t: 7 + 3 * t, lambda t: 9 + 4 * t, lambda t: 12 + 5 * t * t),
        ),
        ("Feedback voltage", "temperature (°C)", "mV", (-50, 150), (790, 810), (lambda t: 799 + 4 * t - 5 * t * t,)),
        (
            "Switch resistance",
            "temperature (°C)",
            "mohm",
            (-50, 150),
            (0, 400),
            (lambda t: 120 + 150 * t, lambda t: 60 + 85 * t),
        ),
        ("Load regulation", "load (A)", "%", (0, 1.5), (-1, 1), (lambda t: 0.2 - 0.4 * t, lambda t: 0.1 - 0.5 * t * t)),
        (
            "Start-up",
            "time (ms)",
            "V",
            (0, 10),
            (0, 6),
            (lambda t: 5 * min(1, max(0, 2.2 * t - 0.3)), lambda t: 3.3 if t > 0.62 else 0.1),
        ),
        (
            "Load step",
            "time (ms)",
            "V",
            (0, 2),
            (4, 6),
            (lambda t: 5 - 0.5 * math.exp(-9 * (t - 0.3)) * math.cos(40 * (t - 0.3)) * (t > 0.3),),
        ),
    )
    for i, (name, x_label, y_label, x_range, y_range, laws) in enumerate(panels):
        left, bottom = LEFT + 36 + (i % 2) * 264, HEIGHT - 262 - (i // 2) * 208
        curves = [[(x_range[0] + t * (x_range[1] - x_range[0]), law(t)) for t in xs] for law in laws]
        plot(
            canvas,
            (left, bottom, 196, 142),
            curves,
            x_range=x_range,
            y_range=y_range,
            x_label=x_label,
            y_label=y_label,
            size=6.6,
            ticks=(5, 4),
            colors=("#000000", "#00636b", "#b03a2e"),
        )
        canvas.setFont("Helvetica-Bold", 7.6)
        canvas.drawCentredString(left + 98, bottom - 34, f"Figure {i + 1}. {name}")


def fifth(canvas: Canvas) -> None:
    heading(canvas, "Package Outline PSO-8", LEFT, HEIGHT - 90)
    outline(canvas)
    rows = [
        ("Symbol", "Min (mm)", "Nominal (mm)", "Max (mm)"),
        ("A", "1.35", "1.55", "1.70"),
        ("b", "0.33", "0.41", "0.51"),
        ("D", "4.80", "4.90", "5.00"),
        ("E", "5.80", "6.00", "6.20"),
        ("E1", "3.80", "3.90", "4.00"),
        ("e", "", "1.27", ""),
        ("L", "0.40", "0.65", "1.10"),
    ]
    y = place(canvas, table(rows, [128] * 4), LEFT, 430, 512)
    heading(canvas, "Layout Guidelines", LEFT, y - 28)
    y -= 32
    for text in (
        "Place the input capacitor within 2 mm of VIN and GND; its loop decides the noise of the supply.",
        "Keep SW short and away from FB. Route the feedback trace on the far side of the ground plane.",
        "Nine vias of 0.3 mm below the pad carry the heat to the inner layers.",
        "Return the divider to the GND pin, not to the plane beside the inductor.",
    ):
        y = place(canvas, Paragraph(text, BULLET, bulletText="•"), LEFT, y - 3, 512)
    place(
        canvas,
        Paragraph(
            "Quillon Power Devices is an invention for this example and makes no converters. Do not design with this "
            "part.",
            FINE,
        ),
        LEFT,
        76,
        512,
    )


def draw(path: Path) -> None:
    """Write the data sheet."""
    canvas = new_canvas(path, letter, "QD3117 step-down converter")
    for number, page in enumerate((first, second, third, fourth, fifth), 1):
        frame(canvas, number)
        page(canvas)
        canvas.showPage()
    canvas.save()
