"""The words of the shapes world: a clip's caption, other ways to say it, and reading it back.

It knows words and nothing of pixels. Parsing is strict on purpose: a prompt that says anything
beyond this vocabulary is outside the world.
"""

import re
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdit_model.shapes import Clip

__all__ = ["caption", "paraphrase", "parse"]

SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
BACKGROUND_WORDS = {
    "black": ("black",),
    "gray": ("gray", "grey"),
    "navy": ("navy", "navy blue", "dark blue"),
    "pink": ("pink",),
}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "disk", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "donut"),
    "cross": ("cross", "plus sign"),
}
MOTION_WORDS = {
    "moving left": ("moving left", "sliding to the left", "drifting left", "going leftwards"),
    "moving right": ("moving right", "sliding to the right", "drifting right", "going rightwards"),
    "moving up": ("moving up", "sliding up", "rising", "going upwards"),
    "moving down": ("moving down", "sliding down", "sinking", "going downwards"),
    "bouncing": ("bouncing", "bouncing up and down", "hopping up and down"),
    "circling": ("circling", "going around in a circle", "orbiting"),
    "spinning": ("spinning", "rotating", "turning around itself"),
    "pulsing": ("pulsing", "pulsating", "growing and shrinking"),
}
TEMPLATES = (
    "a {size} {color} {shape} {motion} on a {background} background",
    "a {size} {color} {shape} {motion} over {background}",
    "a {color} {size} {shape} is {motion} against a {background} background",
    "on a {background} background, a {size} {color} {shape} is {motion}",
    "{background} background: a {size} {color} {shape}, {motion}",
    "{size} {color} {shape} {motion}, {background} background",
    "there is a {size} {shape} in {color}, {motion} in front of a {background} backdrop",
    "a {shape}, {size} and {color}, {motion} against {background}",
    "{motion} on {background}: a {size} {color} {shape}",
    "a video of a {size} {color} {shape} that is {motion} on a plain {background} background",
)

_VERB = r"(?:moving|moves?|sliding|slides?|drifting|drifts?|going|goes|gliding|glides?|floating|"
_VERB += r"floats?|flying|flies|travell?ing|travell?s|heading|scrolling|scrolls?) "
_TOWARD = r"(?:(?:to|toward|towards) the )?"
_MOTION_PATTERNS = (
    ("circling", rf"{_VERB}(?:around )?(?:in|on|along) (?:a )?circles?|circling|circles around"),
    ("circling", r"orbiting|orbits|running in circles"),
    ("bouncing", r"(?:bouncing|bounces?|hopping|hops?|jumping|jumps?)(?: up and down)?"),
    ("moving left", rf"{_VERB}{_TOWARD}left(?:wards?)?"),
    ("moving right", rf"{_VERB}{_TOWARD}right(?:wards?)?"),
    ("moving up", rf"{_VERB}{_TOWARD}(?:up(?:wards?)?|top)|rising|rises|climbing|ascending"),
    ("moving down", rf"{_VERB}{_TOWARD}(?:down(?:wards?)?|bottom)|sinking|sinks|falling|falls"),
    ("moving down", r"descending"),
    ("spinning", r"(?:spinning|spins|rotating|rotates|turning|turns)(?: around(?: itself)?)?"),
    ("spinning", r"turning around its (?:own )?center"),
    ("pulsing", r"pulsing|pulses|pulsating|pulsates|growing and shrinking|grows and shrinks"),
    ("pulsing", r"shrinking and growing"),
)
_FILLER = re.compile(
    r"(?:a|an|the|on|over|onto|upon|against|across|in|of|with|by|at|front|is|it|its|that|this|and|"
    r"while|there|video|clip|scene|showing|plain|solid|background|backdrop|colou?red|single|shape)"
)


def caption(clip: "Clip") -> str:
    """Give the canonical caption."""
    return TEMPLATES[0].format(**clip.attributes)


def paraphrase(clip: "Clip", seed: int, index: int) -> str:
    """Say the same in other words: another order, synonyms, capitals, punctuation.

    The draw is keyed by (seed, index) and independent of the clip's.
    """
    random = Random(f"shapes paraphrase {seed} {index}")
    words = {
        "color": clip.color,
        "background": random.choice(BACKGROUND_WORDS[clip.background]),
        "shape": random.choice(SHAPE_WORDS[clip.shape]),
        "size": random.choice(SIZE_WORDS[clip.size]),
        "motion": random.choice(MOTION_WORDS[clip.motion]),
    }
    text = random.choice(TEMPLATES).format(**words)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    manner = random.random()
    if manner < 0.4:
        text = text[0].upper() + text[1:] + random.choice(("", ".", ".", "!"))
    elif manner < 0.5:
        text = text.upper()
    return text


def parse(prompt: str) -> dict[str, str] | None:
    """Read the attributes that a prompt names.

    Returns:
        Attribute to value for the attributes named, canonical values, at least the shape; None
        for a prompt outside the world: no shape of it, two values for one attribute, or words
        that mean nothing here.
    """
    text = " " + " ".join(re.findall(r"[a-z]+", prompt.lower())) + " "
    found: dict[str, str] = {}
    for name, value, pattern in _PATTERNS:
        text, count = pattern.subn(" ", text)
        if count and found.setdefault(name, value) != value:
            return None
    if "shape" not in found or not all(map(_FILLER.fullmatch, text.split())):
        return None
    return found


def _patterns() -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    """List (attribute, value, pattern) in reading order: what contains other words comes first."""
    listed = [("motion", value, pattern) for value, pattern in _MOTION_PATTERNS]
    tables = (("background", BACKGROUND_WORDS), ("shape", SHAPE_WORDS), ("size", SIZE_WORDS))
    for name, table in tables:
        for value, words in table.items():
            longest_first = sorted(words, key=len, reverse=True)
            listed.append((name, value, "|".join(longest_first).replace("-", " ")))
    colors = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
    listed += [("color", color, color) for color in colors]
    return tuple((n, v, re.compile(rf"(?<= )(?:{pattern})(?= )")) for n, v, pattern in listed)


_PATTERNS = _patterns()
