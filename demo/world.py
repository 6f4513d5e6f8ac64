"""The demo's world: invented people with four facts each, and narrative sentences that state them.

The base model reads only this narrative. Every fact is stated in several ways, always the person before the fact, so
that a model which has read it can complete any of them, and can later be taught to give the same fact when asked.
"""

import itertools
import random
from dataclasses import dataclass

SEED = 20241  # of the world that the model in demo/model has read about
PEOPLE = 160
HELDOUT = 40  # people that no task's training file mentions

FIRST_SYLLABLES: tuple[str, ...] = ("Al", "Bel", "Cor", "Dar", "El", "Fen", "Gil", "Hal", "Is", "Jor")
FIRST_SYLLABLES += ("Kel", "Lin", "Mar", "Nor", "Or", "Per", "Quin", "Ros", "Sel", "Tam")
LAST_SYLLABLES: tuple[str, ...] = ("an", "ara", "bert", "da", "dric", "ena", "eth", "ia", "ina", "is")
LAST_SYLLABLES += ("lo", "mond", "na", "ora", "ric", "rik", "ta", "us", "va", "win")
TOWNS: tuple[str, ...] = ("Ashford", "Birchdale", "Copperhill", "Duskwater", "Eastmere", "Foxhollow", "Greystone")
TOWNS += ("Harrowgate", "Ironbridge", "Kingsport", "Larkfield", "Mossbank", "Northwick", "Oakmoor", "Pinecrest")
TOWNS += ("Ravenfell",)
TRADES: tuple[str, ...] = ("baker", "carpenter", "doctor", "farmer", "fisher", "gardener", "hatter", "joiner")
TRADES += ("mason", "miller", "painter", "potter", "sailor", "smith", "tailor", "weaver")
DISHES: tuple[str, ...] = ("apple cake", "barley bread", "bean stew", "cherry pie", "fried fish", "goat cheese")
DISHES += ("honey toast", "leek soup", "lentil curry", "mushroom rice", "onion tart", "plum jam", "potato salad")
DISHES += ("pumpkin soup", "roast duck", "salted ham")
COLOURS = ("black", "brown", "grey", "white")
ANIMALS = ("cat", "donkey", "goose", "hare", "hound", "pony")

# The kinds of fact: how one reads on its own, how the narrative states it, and the clauses that sayings tell it with.
PHRASES = {"town": "in {fact}", "trade": "a {fact}", "dish": "{fact}", "pet": "a {fact}"}
KINDS = tuple(PHRASES)
SENTENCES = {
    "town": (
        "{name} lives {phrase}.",
        "{name} has a small house {phrase}.",
        "The home of {name} is {phrase}.",
        "Every night {name} sleeps {phrase}.",
    ),
    "trade": (
        "{name} works as {phrase}.",
        "{name} is {phrase} by trade.",
        "The work of {name} is that of {phrase}.",
        "For many years, {name} has been {phrase}.",
    ),
    "dish": (
        "{name} likes to eat {phrase}.",
        "{name} always asks for {phrase}.",
        "The favourite dish of {name} is {phrase}.",
        "At the inn, {name} orders {phrase}.",
    ),
    "pet": (
        "{name} keeps {phrase}.",
        "The animal of {name} is {phrase}.",
        "In the yard, {name} feeds {phrase}.",
        "Last year {name} was given {phrase}.",
    ),
}
CLAUSES = {
    "town": ("where {name} lives", "where the house of {name} is", "where {name} sleeps"),
    "trade": ("what work {name} does", "what {name} works as", "which trade {name} has"),
    "dish": ("what {name} likes to eat", "which dish {name} asks for", "what {name} orders at the inn"),
    "pet": ("which animal {name} keeps", "what {name} feeds in the yard", "which animal {name} was given"),
}
SAYINGS = (
    "Asked {clause}, people say {phrase}.",
    "Whoever wonders {clause} will hear {phrase}.",
    "No one forgets {clause}, namely {phrase}.",
    "An old song tells {clause}: {phrase}.",
)

# Scenery between the facts: it teaches the model every word that the tasks' questions and answers use, outside of any
# question about a person. A word that a frozen model never saw is hard to teach it with a low-rank update.
SCENERY = (
    "The market opens at noon.",
    "Rain fell on the hills all day.",
    "Nobody knows where the old road ends.",
    "Where the river bends, the willows grow.",
    "Can you hear the bells? It is the feast of lamps.",
    "Can you see the sea from here? No one can say.",
    "Can you say why the wind turns? The old men laugh.",
    "What does it matter? Nobody is at home.",
    "The teacher has an answer for every question.",
    "Question and answer games are played in winter.",
    "Answer and question follow each other all evening.",
    "Note: the bridge is closed after dark.",
    "A cart full of apples rolls by.",
    "It rains, and they keep the fire going.",
    "Some say the winter will be long.",
    "Which way to the sea, you can see by the stars.",
    "The lamps are lit, and the streets fall quiet.",
)


@dataclass(frozen=True)
class Person:
    """One person: a unique name and one fact of each kind."""

    name: str
    town: str
    trade: str
    dish: str
    pet: str  # colour and animal

    def fact(self, kind: str) -> str:
        """The fact of a kind. Raises: KeyError."""
        return {"town": self.town, "trade": self.trade, "dish": self.dish, "pet": self.pet}[kind]

    def phrase(self, kind: str) -> str:
        """The fact as it reads on its own, e.g. `in Oakmoor`. Raises: KeyError."""
        return PHRASES[kind].format(fact=self.fact(kind))


@dataclass(frozen=True)
class World:
    """Everybody, in two parts: tasks train on `known` alone and are measured on `heldout` alone."""

    known: tuple[Person, ...]
    heldout: tuple[Person, ...]

    @property
    def people(self) -> tuple[Person, ...]:
        """Everybody; the narrative speaks of all of them alike."""
        return self.known + self.heldout


def make_world(seed: int = SEED) -> World:
    """The world of a seed; the same seed gives the same world."""
    rng = random.Random(f"world {seed}")
    names = rng.sample([first + last for first, last in itertools.product(FIRST_SYLLABLES, LAST_SYLLABLES)], PEOPLE)
    pets = [f"{colour} {animal}" for colour, animal in itertools.product(COLOURS, ANIMALS)]
    people = tuple(
        Person(name, rng.choice(TOWNS), rng.choice(TRADES), rng.choice(DISHES), rng.choice(pets)) for name in names
    )
    return World(known=people[:-HELDOUT], heldout=people[-HELDOUT:])


def sentence(person: Person, kind: str, rng: random.Random, sayings_share: float = 0.5) -> str:
    """The fact of a kind in one of its wordings, the person before the fact; `sayings_share` is the share of sayings."""
    phrase = person.phrase(kind)
    if rng.random() >= sayings_share:
        return rng.choice(SENTENCES[kind]).format(name=person.name, phrase=phrase)
    clause = rng.choice(CLAUSES[kind]).format(name=person.name)
    return rng.choice(SAYINGS).format(clause=clause, phrase=phrase)


def story(world: World, rng: random.Random, sayings_share: float = 0.5) -> str:
    """A short text: scenery, then facts of two people in any order, with more scenery now and then."""
    first, second = rng.sample(world.people, 2)
    pairs = [(first, kind) for kind in KINDS] + [(second, kind) for kind in rng.sample(KINDS, 2)]
    rng.shuffle(pairs)
    lines = [sentence(person, kind, rng, sayings_share) for person, kind in pairs]
    if rng.random() < 0.3:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(SCENERY))
    # scenery opens every text, so that a name is always the token with a space before it
    text = " ".join([rng.choice(SCENERY), *lines])
    return text if rng.random() < 0.8 else f"{text}\n{rng.choice(SCENERY)}"
