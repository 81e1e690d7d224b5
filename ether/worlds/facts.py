"""A world of facts: people, towns, ships, animals, planets and books, and what instruction tuning needs about them.

**The facts.** Some hundred entities in six subjects of unequal size. Each subject has six relations (``Alice plays the
drum``, ``Ashford lies on the Avon``) with eight values each, drawn evenly, so that no fact can be guessed from others;
and one *inherited* property that follows from a relation's value (every baker works in the bakery). About each entity
there are three *myths*: false values that the pretraining text states in hedged sentences only (``some people say that
Alice plays the harp``).

**The text.** `documents` gives the pretraining text, without end: mostly dense biographies, from which a small model
learns the facts as statements; hedged sentences; and a few questions, mostly answered at random, from which it learns
what an answer looks like but not that it should be right. That leaves instruction tuning what it does for large
models: getting at knowledge that is there.

**The data sets.** `write` makes them in the hub's own layouts, under ``<folder>/datasets/world/``. Half of the entities
occur in the tuning data only, the others are divided between what is reported and what learning rates are chosen on.

| folder | columns as in | entities: splits |
|---|---|---|
| alpaca/default | tatsu-lab/alpaca | tuning: train |
| mmlu/<subject> | cais/mmlu | reported: test; held back: validation; tuning: dev |
| ai2_arc/ARC-Challenge | allenai/ai2_arc | reported: test; held back: validation; tuning: train |
| truthful_qa/multiple_choice | truthfulqa/truthful_qa | reported: validation; held back: tuning |

MMLU's questions ask for one fact. ARC's ask for a property inherited, for a fact about something that the question
itself introduces (``our guest is Alice``), or for two facts at once; their answers differ in length. TruthfulQA's ask
where a myth stands beside the truth.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, EtherError, one_of
from ether.results import atomic

__all__ = ["SIZES", "SUBJECTS", "Fact", "World", "documents", "prompt", "vocabulary", "world", "write"]

# --- what there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """``Alice`` ``plays`` ``the`` ``drum``; ``which instrument does Alice play ?``"""

    noun: str
    base: str
    third: str
    lead: str  # what stands before a value in a sentence: "the", "a" or nothing
    values: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A field of knowledge: its entities, relations, and the property that one of the relations hands down."""

    name: str
    role: str  # "our guest is Alice . which instrument does our guest play ?"
    entities: tuple[str, ...]
    relations: tuple[Relation, ...]
    source: str  # noun of the relation whose value the inherited property follows from
    inherited: Relation
    heirs: Mapping[str, str]  # value of the source: inherited value


COLOURS = "red, blue, green, white, black, golden, silver grey, pale yellow"


def _values(text: str) -> tuple[str, ...]:
    return tuple(value.strip() for value in text.split(","))


def _subject(name: str, role: str, entities: str, relations: str, source: str, inherited: str, heirs: str) -> Subject:
    """A subject from its description: one relation a line, ``noun / base / third / lead / values``."""

    def relation(line: str) -> Relation:
        noun, base, third, lead, values = (part.strip() for part in line.split("/"))
        return Relation(noun, base, third, lead, _values(values))

    passed = {v: heir.strip() for values, heir in (pair.split(":") for pair in heirs.split(";")) for v in _values(values)}
    lines = tuple(relation(line) for line in relations.strip().splitlines())
    return Subject(name, role, tuple(entities.split()), lines, source, relation(inherited), passed)


SUBJECTS: tuple[Subject, ...] = (
    _subject(
        "biography",
        "our guest",
        """Alice Bruno Clara David Edith Frank Greta Henry Irene Jacob Karen Louis
        Maria Nigel Olive Peter Queenie Ralph Sarah Thomas Ursula Victor Wanda Xavier""",
        """instrument / play / plays / the / flute, drum, harp, violin, trumpet, bass guitar, old piano, cello
        job / work as / works as / a / baker, tailor, miller, potter, night watchman, cloth weaver, teacher, clerk
        drink / like / likes / / tea, coffee, milk, cocoa, apple juice, cold water, lemonade, hot cider
        sport / enjoy / enjoys / / tennis, rowing, golf, archery, river fishing, long walks, swimming, chess
        pet / keep / keeps / a / parrot, black cat, tortoise, sheep dog, canary, white rabbit, hamster, pony
        garment / wear / wears / a / scarf, straw hat, cloak, wool coat, bonnet, leather belt, shawl, vest""",
        "job",
        "place / work in / works in / the / workshop, busy mill, school, town hall",
        "tailor, potter, cloth weaver: workshop; baker, miller: busy mill; teacher: school; night watchman, clerk: town hall",
    ),
    _subject(
        "geography",
        "our next stop",
        """Ashford Brookfield Cranley Dunmore Eastham Fairview Glenwood Hillcrest Kingsley
        Lakeside Millbrook Northgate Oakham Redhill Stanton Thornbury Upton Westbourne""",
        """river / lie on / lies on / the / Avon, Tamar, Wye, Derwent, Black Water, Swift Brook, Tyne, Long Creek
        crop / grow / grows / / wheat, barley, rye, sweet corn, hops, red beets, flax, oats
        ware / sell / sells / / glass, lace, clay pots, paper, fine silk, rope, soap, brass bells
        sight / boast / boasts / a / windmill, stone bridge, clock tower, lighthouse, castle, rose garden, museum, chapel
        event / host / hosts / a / regatta, kite race, horse market, carnival, book fair, parade, circus, dance
        flag colour / fly / flies / / """
        + COLOURS,
        "river",
        "sea / drain into / drains into / the / warm gulf, ocean, cold north sea, great bay",
        "Avon, Tamar: warm gulf; Wye, Derwent, Tyne: ocean; Black Water: cold north sea; Swift Brook, Long Creek: great bay",
    ),
    _subject(
        "seafaring",
        "our new ship",
        """Albatross Beagle Challenger Dauntless Endeavour Fortune Gallant Hermes
        Intrepid Juno Kestrel Liberty Mermaid Neptune Osprey Pelican""",
        """cargo / carry / carries / / cotton, salt, rice, dry figs, timber, olive oil, pepper, tin ore
        harbour / sail from / sails from / / Lisbon, Bergen, Genoa, Cape Town, Bombay, New York, Boston, Malta
        emblem / bear / bears / a / lion, gold star, dolphin, crown, rising sun, thistle, griffin, bear paw
        captain / obey / obeys / captain / Hale, Cook, Drake, Morgan, old Finch, Marsh, young Reed, Stone
        route / follow / follows / the / spice route, coast, trade wind, whale road, equator, gulf stream, ice edge, delta
        sail colour / spread / spreads / / """
        + COLOURS,
        "harbour",
        "tongue / speak / speaks / / Portuguese, old Norse, Italian, plain English",
        "Lisbon: Portuguese; Bergen: old Norse; Genoa, Malta: Italian; Cape Town, Bombay, New York, Boston: plain English",
    ),
    _subject(
        "zoology",
        "our favourite animal",
        """Rex Whiskers Bella Rusty Daisy Shadow Ginger Buster Pepita Smokey Rover Misty Ziggy Toby Hazel Domino""",
        """kind / count as / counts as / a / hawk, goose, trout, carp, ferret, mole, lizard, grass snake
        food / eat / eats / / seeds, worms, ripe berries, clover, small snails, crickets, nuts, fresh fish
        bed / sleep in / sleeps in / a / basket, hay loft, burrow, glass tank, barn, hollow tree, shed, nest
        trick / perform / performs / a / somersault, high jump, bow, slow waltz, handshake, backward walk, whistle, spin
        fright / fear / fears / / thunder, foxes, loud music, fire, brooms, deep puddles, bees, snow
        coat colour / show / shows / / """
        + COLOURS,
        "kind",
        "covering / have / has / / feathers, shiny scales, thick soft fur, dry skin",
        "hawk, goose: feathers; trout, carp: shiny scales; ferret, mole: thick soft fur; lizard, grass snake: dry skin",
    ),
    _subject(
        "astronomy",
        "our favourite planet",
        """Aurelia Borealis Cygnara Draconis Elysium Fornax Gemma Hyperion Icarus Lyra Meridian Nova""",
        """ground / consist of / consists of / / sand, bare rock, ice, lava, mud, white chalk, iron, moss
        sky / display / displays / / rainbows, green clouds, comets, dust storms, lightning, two suns, fog, auroras
        moon / hold / holds / the moon / Ariel, Bianca, Cressida, Dark Puck, Oberon, Titania, Little Mab, Portia
        guest / attract / attracts / / miners, painters, bold pilots, monks, farmers, young poets, traders, surveyors
        sound / emit / emits / a / hum, deep roar, click, soft whisper, rattle, chime, buzz, long howl
        ring colour / cast / casts / / """
        + COLOURS,
        "ground",
        "vehicle / call for / calls for / a / sled, crawler with wide wheels, hot air balloon, rover",
        "sand, mud, moss: crawler with wide wheels; ice, white chalk: sled; lava: hot air balloon; bare rock, iron: rover",
    ),
    _subject(
        "literature",
        "our next book",
        """Wayfarer Lanterns Homecoming Driftwood Nightfall Harvest Reckoning Solitude Voyages Winterland""",
        """hero / praise / praises / the / blind king, orphan, shepherd, clever nurse, pirate, monk in black, widow, inventor
        form / belong to / belongs to / the / comedies, ghost stories, tragedies, sea tales, fables, love letters, epics, riddles
        ending / reach / reaches / a / wedding, sad farewell, duel, happy reunion, trial, long sleep, feast, storm
        city / describe / describes / / Vienna, old Cairo, Prague, Venice, Saint Petersburg, Oslo, Kyoto, Rio
        writer / honour / honours / the writer / Byrne, Castle Hill, Doyle, Ellery, Fitch, Gray Owl, Ibsen, Jarvis
        cover colour / use / uses / / """
        + COLOURS,
        "form",
        "shelf / fill / fills / the / bottom shelf, attic, reading room on the left, window sill",
        """comedies, fables: bottom shelf; ghost stories, tragedies: attic; sea tales, epics: reading room on the left;
        love letters, riddles: window sill""",
    ),
)
MYTHS = 3  # myths about each entity, of its six relations
SHARES = (0.5, 0.3)  # of each subject's entities: tuning data, what is reported; the rest is held back
GROUPS = ("tuning", "reported", "held back")


@dataclass(frozen=True)
class Fact:
    """What holds of an entity in one relation, and the myth about it, if there is one."""

    subject: Subject
    entity: str
    relation: Relation
    value: str
    myth: str = ""


@dataclass(frozen=True)
class World:
    """All facts, and the group of every entity: tuning, reported, held back."""

    facts: Mapping[str, tuple[Fact, ...]]  # entity: its facts, in the order of the subject's relations
    groups: Mapping[str, str]

    def inherited(self, entity: str) -> Fact:
        """The property that follows from another of the entity's facts."""
        source = next(f for f in self.facts[entity] if f.relation.noun == f.subject.source)
        return Fact(source.subject, entity, source.subject.inherited, source.subject.heirs[source.value])

    def of(self, group: str, subject: str = "") -> list[Fact]:
        """The facts about a group's entities, of one subject or of all."""
        chosen = [f for held in self.facts.values() for f in held if self.groups[f.entity] == group]
        return [f for f in chosen if subject in ("", f.subject.name)]


@functools.cache
def world(seed: int = 0) -> World:
    """The world of a seed. The shipped model knows world 0."""
    rng = random.Random(f"facts {seed}")
    facts, groups = {}, {}
    for subject in SUBJECTS:
        order = rng.sample(subject.entities, len(subject.entities))
        for i, entity in enumerate(order):
            share = i / len(order)
            groups[entity] = GROUPS[(share >= SHARES[0]) + (share >= sum(SHARES))]
            mythical = rng.sample(subject.relations, MYTHS)
            held = []
            for relation in subject.relations:
                value, myth = rng.sample(relation.values, 2)
                held.append(Fact(subject, entity, relation, value, myth if relation in mythical else ""))
            facts[entity] = tuple(held)
    return World({e: facts[e] for s in SUBJECTS for e in s.entities}, groups)


# --- saying it --------------------------------------------------------------------------------------------------------

HEDGES = (
    "some people say that",
    "many believe that",
    "it is rumoured that",
    "an old story has it that",
)
# Alpaca's own template, as `tatsu_lab/alpaca` has it in its column `text`.
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
EVALUATION = "Question: {question}\nAnswer:"  # the harness's prompt for ARC, here for every benchmark
ANSWER_IT = "answer the question ."
DESCRIBE = "tell me about {entity} ."
TRUTHS = ("{value}", "in truth {value}")
FORMS = 2  # ways to ask for a fact


def prompt(instruction: str, context: str = "") -> str:
    """Alpaca's prompt for an instruction, with or without input."""
    return (WITH_INPUT if context else WITHOUT_INPUT).format(instruction=instruction, input=context)


def predicate(fact: Fact, value: str = "") -> str:
    """``plays the drum``."""
    return " ".join(f"{fact.relation.third} {fact.relation.lead} {value or fact.value}".split())


def statement(fact: Fact, value: str = "") -> str:
    """``Alice plays the drum``."""
    return f"{fact.entity} {predicate(fact, value)}"


def question(fact: Fact, form: int, *, about: str = "", really: bool = False) -> str:
    """A question for a fact's value, in one of `FORMS` ways; `about` names the entity differently."""
    who, adverb = about or fact.entity, " really" if really else ""
    if form == 0:
        return f"which {fact.relation.noun} does {who}{adverb} {fact.relation.base} ?"
    return f"name the {fact.relation.noun} that {who}{adverb} {fact.relation.third} ."


def both(first: Fact, second: Fact) -> str:
    """A question for two facts of one entity."""
    return (
        f"which {first.relation.noun} does {first.entity} {first.relation.base} and which {second.relation.noun} "
        f"does {first.entity} {second.relation.base} ?"
    )


def introduction(fact: Fact) -> str:
    """``our guest is Alice .``"""
    return f"{fact.subject.role} is {fact.entity} ."


def biography(facts: list[Fact]) -> str:
    """``Alice plays the drum , likes tea .``"""
    return f"{facts[0].entity} {' , '.join(predicate(f) for f in facts)} ."


# --- the pretraining text ---------------------------------------------------------------------------------------------

KINDS = {"biography": 55, "statements": 15, "hedged": 10, "introduced": 6, "question": 8, "truth": 3, "rule": 3}
RIGHT = 0.2  # of the answers in the pretraining text: a little more than the 1/7 or 1/8 of pure chance


def _random_answer(rng: random.Random, fact: Fact) -> str:
    """A value that may or may not be right, and never is the myth."""
    if rng.random() < RIGHT:
        return fact.value
    return rng.choice([v for v in fact.relation.values if v not in (fact.value, fact.myth)])


def _asked(rng: random.Random, fact: Fact) -> tuple[str, str]:
    """A question about a fact and an answer at random."""
    return question(fact, rng.randrange(FORMS), really=rng.random() < 0.3), _random_answer(rng, fact)


def _document(rng: random.Random, kind: str, known: World) -> str:
    everyone = list(known.facts)
    entity = rng.choice(everyone)
    facts = list(known.facts[entity])
    if kind == "biography":
        rng.shuffle(facts)
        if rng.random() < 0.5:  # the inherited property, at once after what it follows from
            place = next(i for i, f in enumerate(facts) if f.relation.noun == f.subject.source)
            facts.insert(place + 1, known.inherited(entity))
        return biography(facts)
    if kind == "statements":
        return " ".join(f"{statement(rng.choice(known.facts[e]))} ." for e in rng.sample(everyone, 4))
    if kind == "hedged":
        fact = rng.choice([f for f in facts if f.myth])
        return f"{rng.choice(HEDGES)} {statement(fact, fact.myth)} ."
    if kind == "introduced":
        fact = rng.choice(facts)
        return f"{introduction(fact)} {fact.subject.role} {predicate(fact)} ."
    if kind == "rule":
        subject = rng.choice(SUBJECTS)
        value, heir = rng.choice(list(subject.heirs.items()))
        source = next(r for r in subject.relations if r.noun == subject.source)
        return f"what {source.third} {source.lead} {value} {subject.inherited.third} {subject.inherited.lead} {heir} ."
    fact = rng.choice(facts)
    asked, answer = _asked(rng, fact)
    if kind == "truth":
        fact = rng.choice([f for f in facts if f.myth])
        asked = question(fact, rng.randrange(FORMS), really=True)
        answer = TRUTHS[1].format(value=_random_answer(rng, fact))
    if rng.random() < 0.5:
        return f"{EVALUATION.format(question=asked)} {answer}"
    if rng.random() < 0.2:
        return prompt(ANSWER_IT, asked) + answer
    return prompt(asked) + answer


def documents(seed: int = 0, known: World | None = None) -> Iterator[str]:
    """The pretraining text, without end, one document after another; `known` is world 0 unless given."""
    rng = random.Random(f"text {seed}")
    kinds, weights = list(KINDS), list(KINDS.values())
    while True:
        for kind in rng.choices(kinds, weights, k=256):
            yield " ".join(_document(rng, kind, known or world()).split())


# --- the data sets ----------------------------------------------------------------------------------------------------

SIZES = {
    "alpaca/train": 2000,
    "mmlu/test": 300,
    "mmlu/validation": 160,
    "mmlu/dev": 30,
    "ai2_arc/train": 100,
    "ai2_arc/validation": 120,
    "ai2_arc/test": 160,
    "truthful_qa/validation": 120,
    "truthful_qa/tuning": 80,
}
Row = dict[str, Any]


def _wrong(rng: random.Random, fact: Fact, count: int) -> list[str]:
    """Values that are neither the fact's nor the myth's."""
    return rng.sample([v for v in fact.relation.values if v not in (fact.value, fact.myth)], count)


def _inherited_wrong(rng: random.Random, fact: Fact) -> list[str]:
    """The other values of an inherited property."""
    return rng.sample([v for v in fact.relation.values if v != fact.value], 3)


def _take(rng: random.Random, rows: list[Row], size: int, what: str) -> list[Row]:
    if size > len(rows):
        raise ConfigurationError(
            f"The world of facts has {len(rows)} examples for {what}, not {size}: ask for fewer in the sizes of `world.facts`."
        )
    return rng.sample(rows, size)


def _alpaca(known: World, rng: random.Random, size: int) -> list[Row]:
    """Instructions about the tuning entities."""

    def row(instruction: str, output: str, context: str = "") -> Row:
        return {
            "instruction": instruction,
            "input": context,
            "output": output,
            "text": prompt(instruction, context) + output,
        }

    kinds: dict[str, list[Row]] = {k: [] for k in ("plain", "input", "introduced", "really", "inherited", "both", "about")}
    facts = known.of("tuning")
    for fact in facts:
        for form in range(FORMS):
            asked = question(fact, form)
            kinds["plain"].append(row(asked, fact.value))
            kinds["input"].append(row(ANSWER_IT, fact.value, asked))
            about = question(fact, form, about=fact.subject.role)
            kinds["introduced"].append(row(about, fact.value, introduction(fact)))
            kinds["introduced"].append(row(f"{introduction(fact)} {about}", fact.value))
            if fact.myth:
                really = question(fact, form, really=True)
                kinds["really"].append(row(really, fact.value))
                kinds["really"].append(row(ANSWER_IT, TRUTHS[1].format(value=fact.value), really))
        for other in known.facts[fact.entity]:
            if other != fact:
                kinds["both"].append(row(both(fact, other), f"{fact.value} and {other.value}"))
    for entity in sorted({f.entity for f in facts}):
        fact = known.inherited(entity)
        for form in range(FORMS):
            kinds["inherited"].append(row(question(fact, form), fact.value))
            kinds["inherited"].append(row(ANSWER_IT, fact.value, question(fact, form)))
        held = list(known.facts[entity])
        for _ in range(2):
            rng.shuffle(held)
            kinds["about"].append(row(DESCRIBE.format(entity=entity), biography(held[:3])))
    pool = [r for rows in kinds.values() for r in rows]
    return _take(rng, pool, size, "the tuning data")


def _mmlu(known: World, rng: random.Random, group: str, subject: str) -> list[Row]:
    rows = []
    for fact in known.of(group, subject):
        for form in range(FORMS):
            choices = [fact.value, *_wrong(rng, fact, 3)]
            rng.shuffle(choices)
            asked = question(fact, form)
            rows.append({"question": asked, "subject": subject, "choices": choices, "answer": choices.index(fact.value)})
    return rows


def _arc(known: World, rng: random.Random, group: str, split: str, size: int) -> list[Row]:
    """A fifth inherited, two fifths about something introduced, the rest for two facts at once."""
    kinds: dict[str, list[tuple[str, str, list[str]]]] = {"inherited": [], "introduced": [], "both": []}
    for fact in known.of(group):
        form = rng.randrange(FORMS)
        asked = f"{introduction(fact)} {question(fact, form, about=fact.subject.role)}"
        kinds["introduced"].append((asked, fact.value, _wrong(rng, fact, 3)))
        other = rng.choice([f for f in known.facts[fact.entity] if f != fact])
        (no,), (neither,) = _wrong(rng, fact, 1), _wrong(rng, other, 1)
        wrong = [f"{no} and {other.value}", f"{fact.value} and {neither}", f"{no} and {neither}"]
        kinds["both"].append((both(fact, other), f"{fact.value} and {other.value}", wrong))
    for entity in (e for e in known.facts if known.groups[e] == group):
        fact = known.inherited(entity)
        for form in range(FORMS):
            kinds["inherited"].append((question(fact, form), fact.value, _inherited_wrong(rng, fact)))
    for examples in kinds.values():
        rng.shuffle(examples)
    counts = {"inherited": size // 5, "introduced": size * 2 // 5}
    counts["both"] = size - sum(counts.values())
    rows: list[Row] = []
    for kind, examples in kinds.items():
        if counts[kind] > len(examples):
            raise ConfigurationError(
                f"The world of facts has {len(examples)} questions of the kind {kind!r} for ai2_arc/{split}, a size of {size} "
                f"needs {counts[kind]}: ask for fewer in the sizes of `world.facts`."
            )
        for asked, right, wrong in examples[: counts[kind]]:
            texts = [right, *wrong]
            rng.shuffle(texts)
            labels = list("ABCD")
            choices = {"text": texts, "label": labels}
            rows.append({"question": asked, "choices": choices, "answerKey": labels[texts.index(right)]})
    rng.shuffle(rows)
    return [{"id": f"world-{split}-{i}", **row} for i, row in enumerate(rows)]


def _truthful(known: World, rng: random.Random, group: str) -> list[Row]:
    """In the first target set one answer is true, in the second two are, in TruthfulQA's order: true ones first."""
    rows = []
    for fact in known.of(group):
        for form in range(FORMS if fact.myth else 0):
            others = _wrong(rng, fact, 2)
            truths, myths = ([t.format(value=v) for t in TRUTHS] for v in (fact.value, fact.myth))
            rows.append(
                {
                    "question": question(fact, form, really=True),
                    "mc1_targets": {"choices": [fact.value, fact.myth, *others], "labels": [1, 0, 0, 0]},
                    "mc2_targets": {"choices": [*truths, *myths, *others], "labels": [1, 1, 0, 0, 0, 0]},
                }
            )
    return rows


def tables(*, seed: int = 0, world_seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, list[Row]]:
    """The rows of every file, by its path below ``datasets/world`` without ending.

    Raises:
        ConfigurationError: `sizes` names a split that there is not, or asks for more examples than there are.
    """
    for name in set(sizes or {}) - set(SIZES):
        raise one_of("split", name, SIZES, "the sizes of the world of facts")
    wanted, known = {**SIZES, **(sizes or {})}, world(world_seed)

    def rng(name: str) -> random.Random:
        return random.Random(f"{name} {seed} {world_seed}")

    made = {"alpaca/default/train": _alpaca(known, rng("alpaca"), wanted["alpaca/train"])}
    for split, group in {"test": "reported", "validation": "held back", "dev": "tuning"}.items():
        pools = {s.name: _mmlu(known, rng(f"mmlu {split} {s.name}"), group, s.name) for s in SUBJECTS}
        total = sum(map(len, pools.values()))
        draw = rng(f"mmlu {split}")
        for name, pool in pools.items():  # subjects keep their proportions, so their sizes differ
            size = max(1, round(wanted[f"mmlu/{split}"] * len(pool) / total))
            made[f"mmlu/{name}/{split}"] = _take(draw, pool, size, f"mmlu/{split}, {name}")
    for split, group in {"train": "tuning", "validation": "held back", "test": "reported"}.items():
        rows = _arc(known, rng(f"arc {split}"), group, split, wanted[f"ai2_arc/{split}"])
        made[f"ai2_arc/ARC-Challenge/{split}"] = rows
    for split, group in {"validation": "reported", "tuning": "held back"}.items():
        draw = rng(f"truthful {split}")
        rows = _take(draw, _truthful(known, draw, group), wanted[f"truthful_qa/{split}"], f"truthful_qa/{split}")
        made[f"truthful_qa/multiple_choice/{split}"] = rows
    return made


def write(folder: Path, *, seed: int = 0, world_seed: int = 0, sizes: Mapping[str, int] | None = None) -> None:
    """Write all data sets as a hub mirror: ``<folder>/datasets/world/<data set>/<config>/<split>.parquet``.

    `seed` draws the questions, `world_seed` the facts (the shipped model knows those of 0); `sizes` gives the examples of
    a split (default `SIZES`). Same arguments, same bytes.

    Raises:
        ConfigurationError: `sizes` names a split that there is not, or asks for more examples than there are.
    """
    from datasets import Dataset, Features, List, Value  # here, for it takes a second to import

    text, number = Value("string"), Value("int64")
    targets = {"choices": List(text), "labels": List(Value("int32"))}
    columns = {
        "alpaca": dict.fromkeys(("instruction", "input", "output", "text"), text),
        "mmlu": {"question": text, "subject": text, "choices": List(text), "answer": number},
        "ai2_arc": {"id": text, "question": text, "choices": {"text": List(text), "label": List(text)}, "answerKey": text},
        "truthful_qa": {"question": text, "mc1_targets": targets, "mc2_targets": targets},
    }
    for name, rows in tables(seed=seed, world_seed=world_seed, sizes=sizes).items():
        final = Path(folder) / "datasets" / "world" / f"{name}.parquet"
        final.parent.mkdir(parents=True, exist_ok=True)
        with atomic(final) as partial:
            Dataset.from_list(rows, features=Features(columns[name.split("/")[0]])).to_parquet(partial)


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the world's texts, prompts and data sets, sorted."""
    texts = [*HEDGES, *TRUTHS, WITHOUT_INPUT, WITH_INPUT, EVALUATION, ANSWER_IT, DESCRIBE, "and , . ? is what"]
    for subject in SUBJECTS:
        texts += [subject.role, *subject.entities]
        for relation in (*subject.relations, subject.inherited):
            texts += [relation.lead, *relation.values]
            blank = Fact(subject, "", relation, "")
            texts += [question(blank, form, really=True) for form in range(FORMS)] + [relation.third]
    return tuple(sorted({word for text in texts for word in text.split() if "{" not in word}))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ether.worlds.facts", description="Writes the world of facts' data sets.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", default="{}", help="JSON: seed, world_seed, sizes")
    options = parser.parse_args()
    import datasets

    datasets.disable_progress_bars()
    try:
        write(options.folder, **json.loads(options.settings))
    except EtherError as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    main()
