"""The signs of music, drawn as vectors: staves, clefs, notes, beams, rests, slurs; `sheet_music.py` sets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reportlab.pdfgen.canvas import Canvas

SPACE = 4.6  # between two staff lines, in points
STEP = SPACE / 2
STAFF = 4 * SPACE
STEM = 3.4 * SPACE
BASS_FLATS = -2  # key signatures stand a line lower under a bass clef
SHARPS, FLATS = (8, 5, 9, 6), (4, 7, 3, 6)

Point = tuple[float, float]
# Outlines in staff spaces from the lowest line; a stroke is a smooth curve through its points.
TREBLE = (
    (1.05, 0.72),
    (0.86, 1.2),
    (1.32, 1.72),
    (1.98, 1.05),
    (1.4, 0.0),
    (0.3, 0.7),
    (0.5, 2.0),
    (1.32, 3.05),
    (1.8, 4.1),
    (1.6, 4.95),
    (1.18, 4.3),
    (1.18, 3.4),
    (1.42, 1.8),
    (1.66, 0.2),
    (1.7, -0.8),
    (1.25, -1.5),
    (0.8, -1.2),
)
TREBLE_THICK = ((1.75, 0.3), (1.4, 0.0), (0.3, 0.7), (0.5, 2.0), (1.32, 3.05))
BASS = ((0.3, 3.1), (0.55, 3.7), (1.2, 3.95), (1.85, 3.2), (1.5, 1.9), (0.2, 0.7))
BASS_THICK = ((1.2, 3.95), (1.85, 3.2), (1.5, 1.9), (1.0, 1.3))
REST = ((0.2, 3.3), (0.65, 2.65), (0.25, 2.15), (0.8, 1.45), (0.25, 1.4), (0.35, 0.9), (0.65, 0.65))


@dataclass(frozen=True)
class Note:
    """A length in quarters, the heights of its heads in steps (none: a rest), and an accidental before the first."""

    beats: float
    heights: tuple[int, ...]
    mark: str = ""


class Engraver:
    """Draws on a canvas; x in points, `base` is the y of a staff's lowest line."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas

    def text(self, x: float, y: float, words: str, size: float, font: str = "STIXGeneral") -> None:
        self.canvas.setFont(font, size)
        self.canvas.drawString(x, y, words)

    def centred(self, x: float, y: float, words: str, size: float, font: str = "STIXGeneral") -> None:
        self.text(x - self.canvas.stringWidth(words, font, size) / 2, y, words, size, font)

    def right(self, x: float, y: float, words: str, size: float, font: str = "STIXGeneral") -> None:
        self.text(x - self.canvas.stringWidth(words, font, size), y, words, size, font)

    def curve(self, points: Sequence[Point], x: float, y: float, width: float) -> None:
        """A smooth stroke through points given in staff spaces (Catmull-Rom, as Bezier segments)."""
        path = self.canvas.beginPath()
        path.moveTo(points[0][0] * SPACE, points[0][1] * SPACE)
        padded = [points[0], *points, points[-1]]
        for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
            handles = [(start[i] + (end[i] - before[i]) / 6, end[i] - (after[i] - start[i]) / 6) for i in (0, 1)]
            numbers = (handles[0][0], handles[1][0], handles[0][1], handles[1][1], *end)
            path.curveTo(*(number * SPACE for number in numbers))
        self.canvas.saveState()
        self.canvas.translate(x, y)
        self.canvas.setLineCap(1)
        self.canvas.setLineWidth(width * SPACE)
        self.canvas.drawPath(path)
        self.canvas.restoreState()

    def staff(self, left: float, right: float, base: float) -> None:
        self.canvas.setLineWidth(0.45)
        self.canvas.lines([(left, base + i * SPACE, right, base + i * SPACE) for i in range(5)])

    def brace(self, x: float, low: float, high: float) -> None:
        """The curly brace that joins two staves."""
        middle, bulge = (low + high) / 2, 9.0
        path = self.canvas.beginPath()
        for end, sign in ((high, 1), (low, -1)):
            third = abs(high - low) / 6 * sign
            path.moveTo(x + 2, end)
            path.curveTo(x - bulge, end - third, x + bulge - 3, middle + third, x - 7, middle)
            path.curveTo(x + bulge, middle + third, x - bulge + 4, end - third, x + 2, end)
        self.canvas.drawPath(path, fill=1, stroke=0)

    def clef(self, x: float, base: float, *, bass: bool) -> None:
        self.curve(BASS if bass else TREBLE, x, base, 0.16)
        self.curve(BASS_THICK if bass else TREBLE_THICK, x, base, 0.32)
        dots = ((0.42, 3.0, 0.3), (2.3, 3.5, 0.19), (2.3, 2.5, 0.19)) if bass else ((0.98, -1.1, 0.26),)
        for dx, dy, radius in dots:
            self.canvas.circle(x + dx * SPACE, base + dy * SPACE, radius * SPACE, stroke=0, fill=1)

    def key(self, x: float, base: float, accidentals: int, shift: int) -> float:
        """The key signature; returns the x after it."""
        heights = SHARPS if accidentals > 0 else FLATS
        for height in heights[: abs(accidentals)]:
            self.accidental(x, base + (height + shift) * STEP, "♯" if accidentals > 0 else "♭")
            x += 5.6
        return x

    def accidental(self, x: float, y: float, sign: str) -> None:
        self.text(x, y - (1.3 if sign == "♭" else 1.9) * STEP, sign, 3.1 * SPACE)

    def meter(self, x: float, base: float, beats: int) -> None:
        for digit, y in ((beats, base + 2 * SPACE), (4, base)):
            self.text(x, y + 0.12 * SPACE, str(digit), 2.75 * SPACE, "STIXGeneralBol")

    def bar_line(self, x: float, low: float, high: float, *, final: bool = False, double: bool = False) -> None:
        self.canvas.setLineWidth(0.8)
        self.canvas.line(x, low, x, high)
        if double and not final:
            self.canvas.line(x - 2.6, low, x - 2.6, high)
        if final:
            self.canvas.line(x - 5, low, x - 5, high)
            self.canvas.rect(x - 2.6, low, 2.8, high - low, stroke=0, fill=1)

    def head(self, x: float, y: float, *, hollow: bool) -> None:
        self.canvas.saveState()
        self.canvas.translate(x, y)
        self.canvas.rotate(22)
        if hollow:
            self.canvas.setLineWidth(1.1)
            self.canvas.ellipse(-0.58 * SPACE, -0.34 * SPACE, 0.58 * SPACE, 0.34 * SPACE)
        else:
            self.canvas.ellipse(-0.66 * SPACE, -0.45 * SPACE, 0.66 * SPACE, 0.45 * SPACE, stroke=0, fill=1)
        self.canvas.restoreState()

    def heads(self, note: Note, x: float, base: float) -> None:
        """Note heads with ledger lines, dots and accidental."""
        self.canvas.setLineWidth(0.6)
        for height in note.heights:
            ledgers = [*range(-2, height - 1, -2), *range(10, height + 1, 2)]
            self.canvas.lines([(x - SPACE, base + h * STEP, x + SPACE, base + h * STEP) for h in ledgers])
            self.head(x, base + height * STEP, hollow=note.beats >= 2)
            if note.beats in (1.5, 3):
                self.canvas.circle(
                    x + 1.25 * SPACE, base + (height + (height % 2 == 0)) * STEP, 0.2 * SPACE, stroke=0, fill=1
                )
        if note.mark:
            self.accidental(x - 2.1 * SPACE, base + note.heights[0] * STEP, note.mark)

    def rest(self, beats: float, x: float, base: float) -> None:
        if beats >= 2:
            self.canvas.rect(x - SPACE / 2, base + 2 * SPACE, 1.2 * SPACE, SPACE / 2, stroke=0, fill=1)
        else:
            self.curve(REST, x - SPACE / 2, base, 0.26)

    def bar(self, notes: Sequence[Note], x: float, width: float, base: float, beats: int) -> None:
        """The notes of a bar, spread by their onsets; neighbours shorter than a quarter share beams within a beat."""
        onset, group = 0.0, list[tuple[float, Note]]()
        for note in notes:
            if group and onset % (2 if beats == 4 else 1) == 0:
                self.beamed(group, base)
                group = []
            place = x + 4 + onset / beats * width
            if not note.heights:
                self.rest(note.beats, place, base)
            elif note.beats < 1:
                group.append((place, note))
            else:
                self.heads(note, place, base)
                if note.beats < 4:
                    self.stem(note, place, base)
            onset += note.beats
        if group:
            self.beamed(group, base)

    def stem(self, note: Note, x: float, base: float) -> None:
        up = sum(note.heights) < 4 * len(note.heights)
        side = x + (0.6 if up else -0.6) * SPACE
        start, end = (min(note.heights), max(note.heights)) if up else (max(note.heights), min(note.heights))
        self.canvas.setLineWidth(0.65)
        self.canvas.line(side, base + start * STEP, side, base + end * STEP + (STEM if up else -STEM))

    def beamed(self, group: Sequence[tuple[float, Note]], base: float) -> None:
        """Heads and stems that end on a common slanted beam; a lone note gets a flag."""
        heights = [note.heights[0] for _, note in group]
        sign = 1 if sum(heights) < 4 * len(heights) else -1
        sides = [x + 0.6 * SPACE * sign for x, _ in group]
        slant = max(-1.0, min(1.0, (heights[-1] - heights[0]) / 4)) * SPACE
        span = (sides[-1] - sides[0]) or 1.0
        slopes = [slant * (side - sides[0]) / span for side in sides]
        level = sign * max(
            sign * (base + h * STEP - slope) + STEM * 0.94 for h, slope in zip(heights, slopes, strict=True)
        )
        for (x, note), side, slope in zip(group, sides, slopes, strict=True):
            self.heads(note, x, base)
            self.canvas.setLineWidth(0.65)
            self.canvas.line(side, base + note.heights[0] * STEP, side, level + slope)
        if len(group) == 1:
            flag = ((0, 0), (0.5, -0.75 * sign), (0.95, -1.3 * sign), (0.8, -2.1 * sign))
            self.curve(flag, sides[0], level, 0.22)
            return
        self.beam(sides[0], level, sides[-1], level + slopes[-1], sign)
        for i in range(len(group) - 1):
            if group[i][1].beats < 0.5 and group[i + 1][1].beats < 0.5:
                drop = -sign * 0.75 * SPACE
                self.beam(sides[i], level + slopes[i] + drop, sides[i + 1], level + slopes[i + 1] + drop, sign)

    def beam(self, x0: float, y0: float, x1: float, y1: float, sign: int) -> None:
        thick = -sign * 0.5 * SPACE
        path = self.canvas.beginPath()
        path.moveTo(x0, y0)
        for x, y in ((x1, y1), (x1, y1 + thick), (x0, y0 + thick)):
            path.lineTo(x, y)
        path.close()
        self.canvas.drawPath(path, fill=1, stroke=0)

    def slur(self, x0: float, x1: float, y: float) -> None:
        path = self.canvas.beginPath()
        third, rise = (x1 - x0) / 3, 9.0
        path.moveTo(x0, y)
        path.curveTo(x0 + third, y + rise, x1 - third, y + rise, x1, y)
        path.curveTo(x1 - third, y + rise + 1.8, x0 + third, y + rise + 1.8, x0, y)
        self.canvas.drawPath(path, fill=1, stroke=0)

    def hairpin(self, x0: float, x1: float, y: float, *, opening: bool) -> None:
        closed, wide = (x0, x1) if opening else (x1, x0)
        self.canvas.setLineWidth(0.7)
        self.canvas.lines([(closed, y, wide, y + 3.2), (closed, y, wide, y - 3.2)])
