"""Engraved piano music: two movements on grand staves, with beams, chords, rests, slurs and dynamics.

Heights are counted in steps: 0 is the lowest line of a staff, 8 the highest, each line and each space is one step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engraving import BASS_FLATS, STAFF, Engraver, Note
from pen import new_canvas
from reportlab.lib.pagesizes import A4

WIDTH, HEIGHT = A4
LEFT, RIGHT = 58.0, A4[0] - 46
BETWEEN, SYSTEM = 38.0, 109.0  # between the staves of a system; from system to system
BARS = 4  # in a system


@dataclass(frozen=True)
class Movement:
    """What a movement is made from; `accidentals` counts sharps (positive) or flats (negative)."""

    name: str
    tempo: str
    beats: int
    accidentals: int
    bars: int
    seed: int
    rhythms: Sequence[Sequence[float]]


WALTZ = Movement(
    "I. On the Ferry", "Andantino, un poco rubato", 3, 1, 40, 5,
    ((2, 1), (1, 1, 1), (0.5, 0.5, 0.5, 0.5, 0.5, 0.5), (1.5, 0.5, 1), (1, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 1, -1), (3,),
     (0.25, 0.25, 0.25, 0.25, 1, 1), (0.5, 0.5, 0.5, 0.5, 1)),
)  # fmt: skip
MARCH = Movement(
    "II. Home by Lantern Light", "Allegro giocoso", 4, -2, 32, 9,
    ((1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5, 1, -1), (0.25,) * 8 + (1, 1), (1.5, 0.5, 2), (0.5, 0.25, 0.25) * 4, (2, 2),
    (0.5,) * 8,
     (1, 0.5, 0.5, -1, 1)),
)  # fmt: skip
ROOTS = (0, 0, 3, 4, 5, 3, 4, 0)  # the harmony of eight bars, in steps above the tonic


def melody(movement: Movement) -> list[list[Note]]:
    """Bars for the right hand: phrases of eight bars, of which the second half answers the first."""
    chance = random.Random(movement.seed)
    bars: list[list[Note]] = []
    height = 5
    for bar in range(movement.bars):
        if bar % 8 in (4, 5):  # the answer begins like the question, a step higher
            bars.append([Note(note.beats, tuple(h + 1 for h in note.heights)) for note in bars[bar - 4]])
            continue
        rhythm = movement.rhythms[int(chance.random() * len(movement.rhythms))]
        if bar % 8 == 7:
            rhythm = (float(movement.beats),)
        notes = []
        for beats in rhythm:
            height += (-2, -1, -1, 1, 1, 2, 3)[int(chance.random() * 7)]
            height = min(max(height, -1), 10)
            if height > 8:
                height -= 3
            chord = (height, height - 2) if chance.random() < 0.18 and beats >= 1 else (height,)
            mark = "♯♮"[int(chance.random() * 2)] if chance.random() < 0.06 else ""
            notes.append(Note(abs(beats), () if beats < 0 else chord, mark))
        bars.append(notes)
    return bars


def accompaniment(movement: Movement) -> list[list[Note]]:
    """Bars for the left hand: bass and chords, or broken chords every second phrase."""
    bars = []
    for bar in range(movement.bars):
        root = ROOTS[bar % 8] - 1
        if bar % 8 == 7:
            bars.append([Note(float(movement.beats), (root, root + 4))])
        elif bar // 8 % 2:
            pattern = (0, 4, 7, 9, 7, 4, 2, 4)[: movement.beats * 2]
            bars.append([Note(0.5, (root + step - 1,)) for step in pattern])
        else:
            chord = tuple(root + step + 3 for step in (0, 2, 4))
            rest: tuple[int, ...] = () if bar % 5 == 3 else chord
            middle = [Note(1, chord)] * (movement.beats - 2)
            bars.append([Note(1, (root,)), *middle, Note(1, rest)])
    return bars


def systems(movement: Movement) -> Iterator[tuple[int, list[list[Note]], list[list[Note]]]]:
    """The first bar's number and both hands' bars, system by system."""
    upper, lower = melody(movement), accompaniment(movement)
    for first in range(0, movement.bars, BARS):
        yield first + 1, upper[first : first + BARS], lower[first : first + BARS]


def draw_system(pen: Engraver, movement: Movement, top: float, first: int, hands: Sequence[list[list[Note]]]) -> None:
    """One grand staff with its top line at `top`."""
    left = LEFT + (26 if first == 1 else 0)
    bases = (top - STAFF, top - STAFF - BETWEEN - STAFF)
    pen.brace(left - 4, bases[1], top)
    flat = movement.accidentals < 0
    for base, bass in zip(bases, (False, True), strict=True):
        pen.staff(left, RIGHT, base)
        pen.clef(left + 5, base, bass=bass)
        shift = BASS_FLATS if bass else 0
        x = pen.key(left + 24, base, movement.accidentals, shift)
        if first == 1:
            pen.meter(x + 4, base, movement.beats)
    start = left + 30 + 6 * abs(movement.accidentals) + (16 if first == 1 else 0)
    width = (RIGHT - start) / BARS
    last = first + BARS > movement.bars
    for bar in range(BARS):
        x = start + bar * width
        for hand, base in enumerate(bases):
            pen.bar(hands[hand][bar], x + 7, width - 11, base, movement.beats)
        pen.bar_line(x + width, bases[1], top, final=last and bar == BARS - 1, double=(first + bar) % 16 == 0)
    pen.bar_line(left, bases[1], top)
    pen.text(left + 2, top + 6, str(first) if first > 1 else "", 7.5, "STIXGeneralItalic")
    marks = ("p", "mf", "dolce", "f", "cresc.", "pp", "mp", "rit.")
    pen.text(start + 6, bases[0] - 18, marks[first // BARS % len(marks)], 12, "STIXGeneralBolIta")
    if first // BARS % 3 == 1:
        pen.hairpin(start + width * 1.3, start + width * 2.5, bases[0] - 15, opening=not flat)
    bar = first // BARS % 3
    for length in (0.8, 1.7, 1.2):
        if bar + length < BARS:
            pen.slur(start + bar * width + 8, start + (bar + length) * width, top + 8)
        bar += 1 + int(length)


def draw(path: Path) -> None:
    """Write the music."""
    canvas = new_canvas(path, A4, "Two Harbour Pieces")
    pen = Engraver(canvas)
    pen.centred(WIDTH / 2, HEIGHT - 62, "Two Harbour Pieces", 21, "STIXGeneralBol")
    pen.centred(WIDTH / 2, HEIGHT - 80, "for piano", 11, "STIXGeneralItalic")
    pen.right(RIGHT, HEIGHT - 96, "Oda Fennimore (born 1961)", 10.5)
    pen.text(LEFT, HEIGHT - 96, WALTZ.name, 13, "STIXGeneralBol")
    top = HEIGHT - 146

    def room(height: float) -> None:
        """Turn the page if less than `height` is left."""
        nonlocal top
        if top - height < 54:
            canvas.showPage()
            top = HEIGHT - 72
            pen.centred(WIDTH / 2, HEIGHT - 36, str(canvas.getPageNumber()), 9)

    for movement in (WALTZ, MARCH):
        if movement is MARCH:
            room(2 * STAFF + BETWEEN + 40)
            pen.centred(WIDTH / 2, top + 4, movement.name, 13, "STIXGeneralBol")
            top -= 40
        for first, *hands in systems(movement):
            room(2 * STAFF + BETWEEN)
            if first == 1:
                pen.text(LEFT + 20, top + 21, movement.tempo, 10.5, "STIXGeneralBol")
            draw_system(pen, movement, top, first, hands)
            top -= SYSTEM
    pen.centred(WIDTH / 2, 40, "Engraved for this collection. May be copied and performed freely.", 8)
    canvas.showPage()
    canvas.save()
