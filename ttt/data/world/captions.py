"""Captions of scenes, as varied as people write them: synonyms, missing articles, background and style left out."""

from __future__ import annotations

import random

from ttt.data.world.backgrounds import BACKGROUNDS, PLAIN
from ttt.data.world.nouns import NOUNS, article, plural_of
from ttt.data.world.scenes import LARGE, OPPOSITE, RELATIONS, SMALL, Relation, Scene, Thing
from ttt.data.world.sprites import Style

SIZE_WORDS: dict[int, tuple[str, ...]] = {SMALL: ("small", "little", "tiny"), LARGE: ("big", "large", "huge")}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
}
STYLE_WORDS: dict[Style, tuple[tuple[str, str], ...]] = {
    # what precedes and what follows the description
    "flat": (("flat drawing of ", ""), ("a flat drawing of ", ""), ("flat ", ""), ("", ", flat style"), ("", ", flat")),
    "shaded": (
        ("shaded drawing of ", ""), ("a shaded drawing of ", ""), ("shaded ", ""), ("", ", shaded style"),
        ("", ", shaded"),
    ),
}  # fmt: skip
COUNT_WORDS = {2: ("two", "2", "a pair of"), 3: ("three", "3")}
_OPENINGS = (
    "a picture of ",
    "a drawing of ",
    "an image of ",
    "there is ",
    "a photo of ",
    "draw ",
    "an illustration of ",
)
_WHERE: dict[Relation, tuple[str, ...]] = {
    "above": ("above it", "over it"), "below": ("below it", "under it"),
    "left": ("to its left", "on its left"), "right": ("to its right", "on its right"),
}  # fmt: skip


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many natural descriptions; size, background and style may be missing."""
    body = _body(scene, rng)
    plain = scene.background in PLAIN
    if rng.random() < (0.45 if plain else 0.75):
        phrase = rng.choice(BACKGROUNDS[scene.background].phrases)
        body = f"{phrase}, {body}" if not plain and rng.random() < 0.06 else f"{body} {phrase}"
    if rng.random() < 0.3:
        before, after = rng.choice(STYLE_WORDS[scene.style])
        body = before + (body if before.strip() != scene.style else _without_article(body)) + after
    elif rng.random() < 0.25:
        body = rng.choice(_OPENINGS) + body
    return body


def plain_caption(scene: Scene) -> str:
    """The shortest full description: things, relation and background."""
    names = [with_article(t.label) for t in scene.things]
    behind = BACKGROUNDS[scene.background].phrases[0]
    if scene.relation in RELATIONS:
        body = f"{names[0]} {RELATION_WORDS[scene.relation][0]} {names[1]}"
    elif scene.relation == "count":
        body = f"{COUNT_WORDS[len(names)][0]} {plural(scene.things[0])}"
    else:
        body = join(names)
    return f"{body} {behind}"


def names_background(text: str, scene: Scene) -> bool:
    """Whether a caption of the scene says where it is."""
    return any(phrase in text for phrase in BACKGROUNDS[scene.background].phrases)


def join(phrases: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def with_article(phrase: str) -> str:
    return f"{article(phrase)} {phrase}"


def plural(thing: Thing, name: str | None = None) -> str:
    """The plural of the thing, or of another name of it."""
    if thing.color is not None:
        return f"{thing.color} {plural_of(thing.name)}"
    return NOUNS[thing.name].plural if name in (None, thing.name) else plural_of(str(name))


def _body(scene: Scene, rng: random.Random) -> str:
    things = scene.things
    if scene.relation == "alone":
        body = _phrase(things[0], rng)
        return _without_article(body) if rng.random() < 0.12 else body
    if scene.relation == "count":
        return f"{rng.choice(COUNT_WORDS[len(things)])} {plural(things[0], _name(things[0], rng))}"
    phrases = [_phrase(t, rng, 0.0 if scene.relation == "row" else 0.5) for t in things]
    if scene.relation == "row":
        if rng.random() < 0.5:
            return join(phrases)
        outer = [phrases[0], phrases[2]]
        rng.shuffle(outer)
        return f"{phrases[1]} between {outer[0]} and {outer[1]}"
    return _related(phrases, scene.relation, rng)


def _related(phrases: list[str], relation: Relation, rng: random.Random) -> str:
    first, second = phrases
    roll = rng.random()
    if roll < 0.1:
        first, second = _without_article(first), _without_article(second)
    if roll < 0.7:
        return f"{first} {rng.choice(RELATION_WORDS[relation])} {second}"
    if roll < 0.88:
        return f"{second} {rng.choice(RELATION_WORDS[OPPOSITE[relation]])} {first}"
    return f"{second} with {first} {rng.choice(_WHERE[relation])}"


def _name(thing: Thing, rng: random.Random) -> str:
    if thing.color is not None:
        return thing.name
    noun = NOUNS[thing.name]
    return rng.choice(noun.others) if noun.others and rng.random() < 0.3 else noun.name


def _phrase(thing: Thing, rng: random.Random, size: float = 0.5) -> str:
    """The thing with its article; `size` is the chance that a small or large one is called so."""
    words = [thing.color or "", _name(thing, rng)]
    chance = size * (0.4 if thing.size == LARGE else 1.0)  # most things alone are large
    if thing.size in SIZE_WORDS and rng.random() < chance:
        words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
    phrase = " ".join(w for w in words if w)
    return f"one {phrase}" if rng.random() < 0.04 else with_article(phrase)


def _without_article(phrase: str) -> str:
    first, _, rest = phrase.partition(" ")
    return rest if first in ("a", "an", "one") else phrase
