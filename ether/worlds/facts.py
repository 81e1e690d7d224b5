"""A world of facts: people, towns, ships, animals, planets and books, with data sets for instruction tuning and its evaluation.

**The facts.** Some hundred entities in six subjects of unequal size. Each subject has six relations (``Alice plays the
drum``, ``Ashford lies on the Avon``) with eight values each, sampled uniformly, so that no fact can be inferred from others,
and one *inherited* property that follows from the value of one relation (every baker works in the bakery). For each entity
there are three *myths*: false values that the pretraining text contains in hedged sentences only (``some people say that
Alice plays the harp``).

**The text.** `documents` is the endless pretraining text: mostly dense biographies, from which a small model
learns the facts as statements; hedged sentences; and a few questions, mostly with random answers, from which it learns
the format of an answer but not that it should be correct. Instruction tuning then has the same purpose as for large models:
it makes existing knowledge available as answers.

**The data sets.** `write` makes them in the layouts of the hub, under ``<folder>/datasets/world/``. Half of the entities
occur in the tuning data only; the others are split between the reported questions and those used to choose learning rates.

| folder | columns as in | entities: splits |
|---|---|---|
| alpaca/default | tatsu-lab/alpaca | tuning: train |
| mmlu/<subject> | cais/mmlu | reported: test; held back: validation; tuning: dev |
| ai2_arc/ARC-Challenge | allenai/ai2_arc | reported: test; held back: validation; tuning: train |
| truthful_qa/multiple_choice | truthfulqa/truthful_qa | reported: validation; held back: tuning |

A question of MMLU is for one fact. A question of ARC is for an inherited property, for a fact about an entity that the
question itself introduces (``our guest is Alice``), or for two facts at once; the answers differ in length. A question of
TruthfulQA has a myth among its answers; half of the questions introduce their entity. Of the reported questions there are so
many that one of them counts for less than 0.3 points.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ether.errors import ConfigurationError, one_of
from ether.results import atomic

__all__ = ["SIZES", "SUBJECTS", "Fact", "World", "documents", "files", "prompt", "vocabulary", "world", "write"]

# --- entities and relations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """``Alice`` ``plays`` ``the`` ``drum``; ``which instrument does Alice play ?``"""

    noun: str
    base: str
    third: str
    lead: str  # the words before a value in a sentence: "the", "a" or nothing
    values: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A field of knowledge: its entities, relations, and a property that is inherited from one of the relations."""

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
    """A subject from its description: one relation per line, ``noun / base / third / lead / values``."""

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
MYTHS = 3  # number of an entity's six relations that have a myth
SHARES = (0.5, 0.3)  # of each subject's entities: tuning data, reported questions; the rest is held back
GROUPS = ("tuning", "reported", "held back")


@dataclass(frozen=True)
class Fact:
    """The value of one relation for an entity, and the myth, if there is one."""

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
        """The facts of a group's entities, for one subject or for all."""
        chosen = [f for facts in self.facts.values() for f in facts if self.groups[f.entity] == group]
        return [f for f in chosen if subject in ("", f.subject.name)]


@functools.cache
def world(seed: int = 0) -> World:
    """The world of a seed. The shipped model was pretrained on world 0."""
    rng = random.Random(f"facts {seed}")
    facts, groups = {}, {}
    for subject in SUBJECTS:
        order = rng.sample(subject.entities, len(subject.entities))
        for i, entity in enumerate(order):
            share = i / len(order)
            groups[entity] = GROUPS[(share >= SHARES[0]) + (share >= sum(SHARES))]
            mythical = rng.sample(subject.relations, MYTHS)
            values = []
            for relation in subject.relations:
                value, myth = rng.sample(relation.values, 2)
                values.append(Fact(subject, entity, relation, value, myth if relation in mythical else ""))
            facts[entity] = tuple(values)
    return World({e: facts[e] for s in SUBJECTS for e in s.entities}, groups)


# --- sentences -------------------------------------------------------------------------------------------------------

HEDGES = (
    "some people say that",
    "many believe that",
    "it is rumoured that",
    "an old story has it that",
)
# The template of Alpaca, as in the column `text` of `tatsu-lab/alpaca`.
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
FORMS = 2  # forms of a question


def prompt(instruction: str, context: str = "") -> str:
    """Alpaca's prompt for an instruction, with or without input."""
    return (WITH_INPUT if context else WITHOUT_INPUT).format(instruction=instruction, input=context)


def predicate(fact: Fact, value: str = "") -> str:
    """``plays the drum``."""
    return " ".join(f"{fact.relation.third} {fact.relation.lead} {value or fact.value}".split())


def statement(fact: Fact, value: str = "") -> str:
    """``Alice plays the drum``."""
    return f"{fact.entity} {predicate(fact, value)}"


def question(fact: Fact, form: int, *, entity: str = "", really: bool = False) -> str:
    """A question for the value of a fact.

    Args:
        fact: the fact.
        form: one of `FORMS` forms, from 0.
        entity: an expression to use in place of the entity's name, such as ``our guest``.
        really: use the adverb ``really``, as questions with a myth among the answers do.
    """
    who, adverb = entity or fact.entity, " really" if really else ""
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
RIGHT = 0.2  # share of correct answers in the pretraining text: slightly more than the 1/7 or 1/8 of pure chance


def _random_answer(rng: random.Random, fact: Fact) -> str:
    """A value that may be wrong, but is never the myth."""
    if rng.random() < RIGHT:
        return fact.value
    return rng.choice([v for v in fact.relation.values if v not in (fact.value, fact.myth)])


def _question_and_answer(rng: random.Random, fact: Fact) -> tuple[str, str]:
    """A question for a fact and a random answer."""
    return question(fact, rng.randrange(FORMS), really=rng.random() < 0.3), _random_answer(rng, fact)


def _document(rng: random.Random, kind: str, source: World) -> str:
    entities = list(source.facts)
    entity = rng.choice(entities)
    facts = list(source.facts[entity])
    if kind == "biography":
        rng.shuffle(facts)
        if rng.random() < 0.5:  # the inherited property, directly after the fact that it follows from
            index = next(i for i, f in enumerate(facts) if f.relation.noun == f.subject.source)
            facts.insert(index + 1, source.inherited(entity))
        return biography(facts)
    if kind == "statements":
        return " ".join(f"{statement(rng.choice(source.facts[e]))} ." for e in rng.sample(entities, 4))
    if kind == "hedged":
        fact = rng.choice([f for f in facts if f.myth])
        return f"{rng.choice(HEDGES)} {statement(fact, fact.myth)} ."
    if kind == "introduced":
        fact = rng.choice(facts)
        return f"{introduction(fact)} {fact.subject.role} {predicate(fact)} ."
    if kind == "rule":
        subject = rng.choice(SUBJECTS)
        value, heir = rng.choice(list(subject.heirs.items()))
        relation = next(r for r in subject.relations if r.noun == subject.source)
        return f"what {relation.third} {relation.lead} {value} {subject.inherited.third} {subject.inherited.lead} {heir} ."
    fact = rng.choice(facts)
    text, answer = _question_and_answer(rng, fact)
    if kind == "truth":
        fact = rng.choice([f for f in facts if f.myth])
        text = question(fact, rng.randrange(FORMS), really=True)
        answer = TRUTHS[1].format(value=_random_answer(rng, fact))
    if rng.random() < 0.5:
        return f"{EVALUATION.format(question=text)} {answer}"
    if rng.random() < 0.2:
        return prompt(ANSWER_IT, text) + answer
    return prompt(text) + answer


def documents(seed: int = 0, source: World | None = None) -> Iterator[str]:
    """The pretraining text as an endless stream of documents about the facts of `source` (default: world 0)."""
    rng = random.Random(f"text {seed}")
    kinds, weights = list(KINDS), list(KINDS.values())
    while True:
        for kind in rng.choices(kinds, weights, k=256):
            yield " ".join(_document(rng, kind, source or world()).split())


# --- the data sets ----------------------------------------------------------------------------------------------------

SIZES = {
    "alpaca/train": 2000,
    "mmlu/test": 340,
    "mmlu/validation": 160,
    "mmlu/dev": 30,
    "ai2_arc/train": 100,
    "ai2_arc/validation": 120,
    "ai2_arc/test": 340,
    "truthful_qa/validation": 340,
    "truthful_qa/tuning": 80,
}
Row = dict[str, Any]
FOLDER = "datasets/world"  # of the data sets, below the root of the mirror


def _wrong(rng: random.Random, fact: Fact, count: int) -> list[str]:
    """Values that are neither the fact's nor the myth's."""
    return rng.sample([v for v in fact.relation.values if v not in (fact.value, fact.myth)], count)


def _inherited_wrong(rng: random.Random, fact: Fact) -> list[str]:
    """The other values of an inherited property."""
    return rng.sample([v for v in fact.relation.values if v != fact.value], 3)


def _sample(rng: random.Random, rows: list[Row], size: int, what: str) -> list[Row]:
    if size > len(rows):
        raise ConfigurationError(
            f"The world of facts has {len(rows)} examples for {what}, but {size} are requested. Reduce this size in "
            "`world.facts.sizes` of the scale."
        )
    return rng.sample(rows, size)


def _alpaca(source: World, rng: random.Random, size: int) -> list[Row]:
    """Instructions for the entities of the tuning group."""

    def row(instruction: str, output: str, context: str = "") -> Row:
        return {
            "instruction": instruction,
            "input": context,
            "output": output,
            "text": prompt(instruction, context) + output,
        }

    kinds: dict[str, list[Row]] = {k: [] for k in ("plain", "input", "introduced", "really", "inherited", "both", "describe")}
    facts = source.of("tuning")
    for fact in facts:
        for form in range(FORMS):
            plain = question(fact, form)
            kinds["plain"].append(row(plain, fact.value))
            kinds["input"].append(row(ANSWER_IT, fact.value, plain))
            introduced = question(fact, form, entity=fact.subject.role)
            kinds["introduced"].append(row(introduced, fact.value, introduction(fact)))
            kinds["introduced"].append(row(f"{introduction(fact)} {introduced}", fact.value))
            if fact.myth:
                really = question(fact, form, really=True)
                kinds["really"].append(row(really, fact.value))
                kinds["really"].append(row(ANSWER_IT, TRUTHS[1].format(value=fact.value), really))
        for other in source.facts[fact.entity]:
            if other != fact:
                kinds["both"].append(row(both(fact, other), f"{fact.value} and {other.value}"))
    for entity in sorted({f.entity for f in facts}):
        fact = source.inherited(entity)
        for form in range(FORMS):
            kinds["inherited"].append(row(question(fact, form), fact.value))
            kinds["inherited"].append(row(ANSWER_IT, fact.value, question(fact, form)))
        shuffled = list(source.facts[entity])
        for _ in range(2):
            rng.shuffle(shuffled)
            kinds["describe"].append(row(DESCRIBE.format(entity=entity), biography(shuffled[:3])))
    pool = [r for rows in kinds.values() for r in rows]
    return _sample(rng, pool, size, "alpaca/train")


def _mmlu(source: World, rng: random.Random, group: str, subject: str) -> list[Row]:
    rows = []
    for fact in source.of(group, subject):
        for form in range(FORMS):
            choices = [fact.value, *_wrong(rng, fact, 3)]
            rng.shuffle(choices)
            answer = choices.index(fact.value)
            rows.append({"question": question(fact, form), "subject": subject, "choices": choices, "answer": answer})
    return rows


def _arc(source: World, rng: random.Random, group: str, split: str, size: int) -> list[Row]:
    """A sixth for inherited properties, two fifths for an introduced entity, the rest for two facts at once."""
    kinds: dict[str, list[tuple[str, str, list[str]]]] = {"inherited": [], "introduced": [], "both": []}
    for fact in source.of(group):
        form = rng.randrange(FORMS)
        introduced = f"{introduction(fact)} {question(fact, form, entity=fact.subject.role)}"
        kinds["introduced"].append((introduced, fact.value, _wrong(rng, fact, 3)))
        other = rng.choice([f for f in source.facts[fact.entity] if f != fact])
        (first,), (second,) = _wrong(rng, fact, 1), _wrong(rng, other, 1)
        wrong = [f"{first} and {other.value}", f"{fact.value} and {second}", f"{first} and {second}"]
        kinds["both"].append((both(fact, other), f"{fact.value} and {other.value}", wrong))
    for entity in (e for e in source.facts if source.groups[e] == group):
        fact = source.inherited(entity)
        for form in range(FORMS):
            kinds["inherited"].append((question(fact, form), fact.value, _inherited_wrong(rng, fact)))
    for examples in kinds.values():
        rng.shuffle(examples)
    counts = {"inherited": size // 6, "introduced": size * 2 // 5}
    counts["both"] = size - sum(counts.values())
    rows: list[Row] = []
    for kind, examples in kinds.items():
        if counts[kind] > len(examples):
            raise ConfigurationError(
                f"The world of facts has {len(examples)} questions of the kind {kind!r} for ai2_arc/{split}, but a size of "
                f"{size} needs {counts[kind]}. Reduce this size in `world.facts.sizes` of the scale."
            )
        for text, right, wrong in examples[: counts[kind]]:
            texts = [right, *wrong]
            rng.shuffle(texts)
            labels = list("ABCD")
            choices = {"text": texts, "label": labels}
            rows.append({"question": text, "choices": choices, "answerKey": labels[texts.index(right)]})
    rng.shuffle(rows)
    return [{"id": f"world-{split}-{i}", **row} for i, row in enumerate(rows)]


def _truthful(source: World, rng: random.Random, group: str) -> list[Row]:
    """One true answer in the first target set, two in the second; true ones first, as in TruthfulQA."""
    rows = []
    for fact in source.of(group):
        plain = [question(fact, form, really=True) for form in range(FORMS)]
        ours = [question(fact, form, entity=fact.subject.role, really=True) for form in range(FORMS)]
        for text in [*plain, *(f"{introduction(fact)} {asked}" for asked in ours)] if fact.myth else ():
            others = _wrong(rng, fact, 2)
            truths, myths = ([t.format(value=v) for t in TRUTHS] for v in (fact.value, fact.myth))
            rows.append(
                {
                    "question": text,
                    "mc1_targets": {"choices": [fact.value, fact.myth, *others], "labels": [1, 0, 0, 0]},
                    "mc2_targets": {"choices": [*truths, *myths, *others], "labels": [1, 1, 0, 0, 0, 0]},
                }
            )
    return rows


def tables(*, seed: int = 0, world_seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, list[Row]]:
    """The rows of every file, by its path below ``datasets/world`` without extension; arguments as for `write`.

    Raises:
        ConfigurationError: `sizes` has an unknown split, or more examples than there are.
    """
    for name in set(sizes or {}) - set(SIZES):
        raise one_of("split", name, SIZES, "the sizes of the world of facts")
    counts, source = {**SIZES, **(sizes or {})}, world(world_seed)

    def rng(name: str) -> random.Random:
        return random.Random(f"{name} {seed} {world_seed}")

    made = {"alpaca/default/train": _alpaca(source, rng("alpaca"), counts["alpaca/train"])}
    for split, group in {"test": "reported", "validation": "held back", "dev": "tuning"}.items():
        pools = {s.name: _mmlu(source, rng(f"mmlu {split} {s.name}"), group, s.name) for s in SUBJECTS}
        total = sum(map(len, pools.values()))
        sampler = rng(f"mmlu {split}")
        for name, pool in pools.items():  # subjects keep their proportions, so their sizes differ
            size = max(1, round(counts[f"mmlu/{split}"] * len(pool) / total))
            made[f"mmlu/{name}/{split}"] = _sample(sampler, pool, size, f"mmlu/{split}, {name}")
    for split, group in {"train": "tuning", "validation": "held back", "test": "reported"}.items():
        rows = _arc(source, rng(f"arc {split}"), group, split, counts[f"ai2_arc/{split}"])
        made[f"ai2_arc/ARC-Challenge/{split}"] = rows
    for split, group in {"validation": "reported", "tuning": "held back"}.items():
        sampler = rng(f"truthful {split}")
        pool = _truthful(source, sampler, group)
        rows = _sample(sampler, pool, counts[f"truthful_qa/{split}"], f"truthful_qa/{split}")
        made[f"truthful_qa/multiple_choice/{split}"] = rows
    return made


def files(settings: Mapping[str, Any]) -> list[str]:
    """The paths, relative to the folder given to `write`, of all files that it writes; they do not depend on the settings."""
    names = [
        "alpaca/default/train",
        *(f"mmlu/{subject.name}/{split}" for subject in SUBJECTS for split in ("test", "validation", "dev")),
        *(f"ai2_arc/ARC-Challenge/{split}" for split in ("train", "validation", "test")),
        *(f"truthful_qa/multiple_choice/{split}" for split in ("validation", "tuning")),
    ]
    return [f"{FOLDER}/{name}.parquet" for name in names]


def write(folder: Path, *, seed: int = 0, world_seed: int = 0, sizes: Mapping[str, int] | None = None) -> None:
    """Write all data sets as a hub mirror: ``<folder>/datasets/world/<data set>/<config>/<split>.parquet``.

    The same settings give the same bytes.

    Args:
        folder: root of the mirror.
        seed: of the questions.
        world_seed: of the facts; the shipped model was pretrained on those of 0.
        sizes: examples by split, where they differ from `SIZES`.

    Raises:
        ConfigurationError: `sizes` has an unknown split, or more examples than there are.
    """
    from datasets import Dataset, Features, List, Value  # takes a second to import, and only writing needs it

    text, number = Value("string"), Value("int64")
    targets = {"choices": List(text), "labels": List(Value("int32"))}
    columns = {
        "alpaca": dict.fromkeys(("instruction", "input", "output", "text"), text),
        "mmlu": {"question": text, "subject": text, "choices": List(text), "answer": number},
        "ai2_arc": {"id": text, "question": text, "choices": {"text": List(text), "label": List(text)}, "answerKey": text},
        "truthful_qa": {"question": text, "mc1_targets": targets, "mc2_targets": targets},
    }
    for name, rows in tables(seed=seed, world_seed=world_seed, sizes=sizes).items():
        with atomic(Path(folder) / FOLDER / f"{name}.parquet") as partial:
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
