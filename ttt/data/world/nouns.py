"""The nouns that the demo's world can show, with their plurals, other names and icons."""

from __future__ import annotations

from dataclasses import dataclass

_TABLE = {
    # icon, or icon=name/other name, or icon=name:plural; the icon's name is that of both icon sets
    "animals": """
        bear bird butterfly two-hump-camel=camel cat cow crab crocodile deer=deer:deer dog duck elephant fish=fish:fish
        flamingo fox frog giraffe hedgehog hippopotamus=hippo/hippopotamus honeybee=bee horse kangaroo koala lion
        monkey mouse=mouse:mice octopus owl panda parrot penguin pig rabbit/bunny shark ewe=sheep:sheep snail snake
        tiger turtle unicorn whale zebra dragon lady-beetle=ladybug t-rex=dinosaur squid""",
    "food": """
        red-apple=apple banana lemon pear peach=peach pineapple strawberry watermelon avocado carrot mushroom tomato
        eggplant pizza hamburger=burger/hamburger hot-dog taco doughnut=donut/doughnut cookie cupcake
        birthday-cake=cake soft-ice-cream=ice-cream egg croissant lollipop""",
    "vehicles": """
        airplane=airplane/plane ambulance bicycle=bicycle/bike bus automobile=car fire-engine=fire-truck helicopter
        motorcycle=motorcycle/motorbike police-car rocket sailboat ship taxi tractor train delivery-truck=truck
        flying-saucer=ufo""",
    "places": """
        house castle church tent volcano desert-island=island ferris-wheel fountain factory""",
    "sky and weather": """
        sun crescent-moon=moon cloud rainbow snowman=snowman:snowmen snowflake ringed-planet=planet fire umbrella""",
    "plants": """
        deciduous-tree=tree palm-tree christmas-tree cactus sunflower tulip rose maple-leaf=maple-leaf:maple-leaves""",
    "things": """
        anchor balloon camera candle chair alarm-clock=clock crown drum guitar hammer top-hat=hat/top-hat key kite
        light-bulb robot teapot trophy wrapped-gift=gift/present basketball soccer-ball teddy-bear ghost alien
        jack-o-lantern=pumpkin""",
}
_VOWEL_SOUND = "aeiou"


@dataclass(frozen=True)
class Noun:
    """One thing that both icon sets draw."""

    name: str
    icon: str
    """Name of the icon in both sets."""
    plural: str
    kind: str
    others: tuple[str, ...] = ()
    """Other names that captions use."""


def article(phrase: str) -> str:
    """ "a" or "an", whichever goes before the phrase."""
    return "an" if phrase[0] in _VOWEL_SOUND and not phrase.startswith(("uni", "ufo", "euro")) else "a"


def plural_of(name: str) -> str:
    """The regular plural."""
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name.endswith(("s", "x", "ch", "sh")) or name in ("tomato", "volcano", "mango"):
        return name + "es"
    return name + "s"


def _parse(entry: str, kind: str) -> Noun:
    icon, _, rest = entry.partition("=")
    names, _, plural = (rest or icon).partition(":")
    name, *others = (n.replace("-", " ") for n in names.split("/"))
    if not rest:
        icon = names.split("/")[0]
    return Noun(name, icon, plural.replace("-", " ") or plural_of(name), kind, tuple(others))


NOUNS: dict[str, Noun] = {
    noun.name: noun for kind, entries in _TABLE.items() for noun in (_parse(e, kind) for e in entries.split())
}
"""Every noun by its name, in the order of the sprite sheet."""
KINDS: tuple[str, ...] = tuple(_TABLE)
