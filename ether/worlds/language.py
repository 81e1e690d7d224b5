"""A mini-language: plain English words, a small grammar, and the eight tasks of GLUE in GLUE's formats.

**The words.** 48 nouns in eight classes (doctors, dogs, ships, soups ...), 24 verbs, 40 adjectives and 8 adverbs.
Each is a *concept* with two names (``doctor`` / ``physician``). The class of a noun has a name too (``worker``,
``vehicle``), and verbs, adjectives and adverbs are pairs of opposites (``find`` / ``lose``). 24 adjectives and four verbs
are positive or negative.

**The sentences.** ``the old doctor finds a broad ship``: an animate subject, a verb, an object of a class that the verb
accepts, and sometimes an adverb (first or last), a negation, or a place (``near the huts``). Subject and verb agree in number:
``the doctor near the huts find a ship`` is not acceptable.

**The corpus.** `documents` is an endless stream of pairs of sentences. The second begins with a connective that states its
relation to the first: ``namely`` a paraphrase, ``so`` an entailment, ``but`` a contradiction, ``perhaps`` a neutral sentence,
``likewise`` one change, ``partly`` two changes, ``meanwhile`` an unrelated sentence, ``indeed`` an answer to a question,
``anyway`` no answer, ``clearly`` a property of subject or object, ``moreover`` the same sentiment. An encoder that is
pretrained on it (`ether.foundation.language_encoder`) learns the meaning of the words without labels.

**The tasks.** `write` makes them from the same sentences without the connectives. A quarter of the concepts (`held_out`) never
occurs in a training split, so that the meaning of these words has to come from pretraining; validation and tuning use all words.

| task | sentence pairs | label |
|---|---|---|
| cola | one sentence | 1 if well formed (agreement, determiner, order, missing word, inanimate subject) |
| sst2 | one or two clauses with polar words, rarely ``not``, sometimes ``but`` | 1 if the main clause is positive |
| mrpc | a sentence, half of the time compound, and a paraphrase (clauses in either order) or an altered one | 1 if a paraphrase |
| stsb | sentences with any number of changes | shared meaning, 0 to 5, with noise as of a rater |
| qqp | a question, mostly compound, and a paraphrase or an altered one | 1 if duplicates |
| mnli | a sentence and an entailment / a neutral sentence / a contradiction | 0 / 1 / 2 |
| qnli | a question and a sentence that answers it or does not | 0 / 1 |
| rte | a compound sentence, and one that follows from one of its clauses, or from none | 0 / 1 |

A compound sentence joins two clauses: ``the soldiers wash the ship and a pupil builds two sleds``. *Altered* means that
one thing is changed or, in a compound sentence, that the two subjects are exchanged, which leaves all words as they are. The
corpus has no such sentences, so that a frozen encoder does not solve these tasks, and a tuned one does not solve them completely.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ether.errors import one_of
from ether.results import atomic

__all__ = ["TASKS", "documents", "files", "held_out", "restatements", "vocabulary", "write"]

# --- words ------------------------------------------------------------------------------------------------------------

NOUNS = {
    "worker": "doctor physician, lawyer attorney, farmer grower, sailor mariner, cook chef, soldier trooper",
    "youngster": "boy lad, girl lass, baby infant, pupil student, orphan foundling, toddler tot",
    "animal": "dog hound, horse steed, pig hog, rabbit bunny, donkey mule, rooster cockerel",
    "vehicle": "car automobile, truck lorry, bicycle bike, plane jet, ship vessel, sled sleigh",
    "dish": "soup broth, stew casserole, cake gateau, cookie biscuit, pie tart, pancake crepe",
    "garment": "coat jacket, hat cap, shirt blouse, dress gown, shoe boot, cloak cape",
    "building": "house home, shop store, church chapel, hut cabin, castle fortress, inn tavern",
    "tool": "hammer mallet, axe hatchet, spade shovel, bucket pail, brush broom, rope cord",
}
ANIMATE = ("worker", "youngster", "animal")
VERBS = {  # opposites, and the classes of their objects
    "praise commend / blame scold": "worker youngster dish",
    "love adore / hate detest": "worker youngster animal vehicle dish garment building tool",
    "find discover / lose misplace": "animal vehicle dish garment tool",
    "buy purchase / sell trade": "animal vehicle dish garment building tool",
    "clean wash / soil stain": "vehicle garment building tool",
    "fix repair / break damage": "vehicle building tool",
    "show reveal / hide conceal": "animal vehicle dish garment tool",
    "lift raise / lower drop": "dish garment tool",
    "push shove / pull drag": "animal vehicle tool",
    "help assist / hinder obstruct": "worker youngster animal",
    "build construct / destroy wreck": "vehicle building",
    "follow chase / avoid evade": "worker youngster animal vehicle",
}
PLAIN_ADJECTIVES = (
    "big large / small little, old aged / young youthful, tall lofty / short stubby, heavy weighty / light feathery, "
    "wide broad / narrow slim, rich wealthy / poor needy, wet damp / dry parched, strong sturdy / weak frail"
)
POLAR_ADJECTIVES = (  # positive / negative
    "good great / bad awful, kind gentle / cruel nasty, happy cheerful / sad gloomy, clever brilliant / stupid foolish,"
    " lovely charming / ugly hideous, honest sincere / deceitful crooked, superb splendid / terrible dreadful, "
    "pleasant delightful / annoying tiresome, brave bold / cowardly timid, neat tidy / messy sloppy, "
    "polite courteous / rude impolite, lively exciting / dull boring"
)
POLAR_VERBS = ("praise", "love")
ADVERBS = (
    "quickly swiftly / slowly sluggishly, often frequently / seldom rarely, loudly noisily / quietly silently, "
    "openly publicly / secretly covertly"
)
INTENSIFIERS = ("very", "quite", "rather")
PREPOSITIONS = ("near", "behind", "beside")
CONNECTIVES = {
    "paraphrase": ("namely", "meaning"),
    "entailment": ("so", "hence"),
    "contradiction": ("but", "yet"),
    "neutral": ("perhaps", "maybe"),
    "one-changed": ("likewise", "similarly"),
    "two-changed": ("partly", "somewhat"),
    "unrelated": ("meanwhile", "elsewhere"),
    "answer": ("indeed", "certainly"),
    "no-answer": ("anyway", "besides"),
    "property": ("clearly", "evidently"),
    "sentiment": ("moreover", "furthermore"),
}
FUNCTION_WORDS = ("the", "a", "an", "two", "is", "are", "does", "do", "not", "and", "although", "who", "what", "?", ",")


@dataclass(frozen=True)
class Concept:
    """The meaning of a word: its two names (one for a class of nouns), kind and family."""

    names: tuple[str, ...]
    kind: str  # noun, class, verb, adjective, adverb
    family: str  # a noun's class; the pair of opposites for the others
    polarity: int = 0  # +1 positive, -1 negative

    def __lt__(self, other: Concept) -> bool:
        return self.names < other.names


def inflect(word: str) -> str:
    """The plural of a noun or the third person of a verb; the spelling rules are the same."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def text(words: list[str]) -> str:
    """Words joined to a sentence, with the article ``an`` before a vowel."""
    vowels = [w.startswith(tuple("aeiou")) or w == "honest" for w in [*words[1:], ""]]
    return " ".join("an" if word == "a" and vowel else word for word, vowel in zip(words, vowels, strict=True))


def _opposites(text: str, kind: str, polar: Callable[[str], bool]) -> list[tuple[Concept, Concept]]:
    pairs = []
    for pair in text.split(","):
        good, bad = (tuple(side.split()) for side in pair.split("/"))
        sign = int(polar(good[0]))
        pairs.append((Concept(good, kind, good[0], sign), Concept(bad, kind, good[0], -sign)))
    return pairs


@dataclass(frozen=True)
class Lexicon:
    """A set of concepts: all of them, or those that remain when some are held out."""

    nouns: Mapping[str, tuple[Concept, ...]]  # by class
    verbs: tuple[Concept, ...]
    plain: tuple[Concept, ...]
    polar: tuple[Concept, ...]
    adverbs: tuple[Concept, ...]

    def concepts(self) -> list[Concept]:
        return [
            *(n for nouns in self.nouns.values() for n in nouns),
            *self.verbs,
            *self.plain,
            *self.polar,
            *self.adverbs,
        ]

    def without(self, excluded: frozenset[Concept]) -> Lexicon:
        def keep(concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
            return tuple(c for c in concepts if c not in excluded)

        return Lexicon(
            {c: keep(n) for c, n in self.nouns.items()},
            keep(self.verbs),
            keep(self.plain),
            keep(self.polar),
            keep(self.adverbs),
        )


CLASSES = {name: Concept((name,), "class", name) for name in NOUNS}


@functools.cache
def lexicon() -> Lexicon:
    """Every concept of the world."""

    def flat(pairs: list[tuple[Concept, Concept]]) -> tuple[Concept, ...]:
        return tuple(c for pair in pairs for c in pair)

    return Lexicon(
        {c: tuple(Concept(tuple(n.split()), "noun", c) for n in names.split(",")) for c, names in NOUNS.items()},
        flat([p for pair in VERBS for p in _opposites(pair, "verb", POLAR_VERBS.__contains__)]),
        flat(_opposites(PLAIN_ADJECTIVES, "adjective", lambda _: False)),
        flat(_opposites(POLAR_ADJECTIVES, "adjective", lambda _: True)),
        flat(_opposites(ADVERBS, "adverb", lambda _: False)),
    )


@functools.cache
def _objects(family: str) -> tuple[str, ...]:
    return next(tuple(classes.split()) for pair, classes in VERBS.items() if pair.split()[0] == family)


@functools.cache
def _opposite(concept: Concept) -> Concept:
    return next(c for c in lexicon().concepts() if c.kind == concept.kind and c.family == concept.family and c != concept)


@functools.cache
def _heads() -> frozenset[str]:
    """All nouns and verbs in all forms: the words without which a sentence is not well formed."""
    names = [n for c in lexicon().concepts() if c.kind in ("noun", "verb") for n in c.names]
    return frozenset(names) | frozenset(map(inflect, names))


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    words = {w for c in CONNECTIVES.values() for w in c} | {*FUNCTION_WORDS, *INTENSIFIERS, *PREPOSITIONS}
    for concept in [*lexicon().concepts(), *CLASSES.values()]:
        words.update(concept.names)
        if concept.kind in ("noun", "class", "verb"):
            words.update(map(inflect, concept.names))
    return sorted(words)


def interchangeable() -> list[list[str]]:
    """The words in groups: nouns, verbs (in all forms), adjectives, adverbs, the others."""
    groups: dict[str, set[str]] = {}
    for concept in [*lexicon().concepts(), *CLASSES.values()]:
        forms = set(concept.names)
        if concept.kind in ("noun", "class", "verb"):
            forms.update(map(inflect, concept.names))
        groups.setdefault("noun" if concept.kind == "class" else concept.kind, set()).update(forms)
    groups["other"] = set(vocabulary()).difference(*groups.values())
    return [sorted(words) for words in groups.values()]


@functools.cache
def _held_out_concepts(seed: int) -> frozenset[Concept]:
    rng, words, excluded = random.Random(f"held-out {seed}"), lexicon(), set[Concept]()
    for i, nouns in enumerate(words.nouns.values()):
        excluded.update(rng.sample(nouns, 1 + i % 2))  # 12 of 48
    for concepts in (words.verbs, words.plain, words.polar, words.adverbs):
        families = sorted({c.family for c in concepts})
        chosen = set(rng.sample(families, len(families) // 4))  # opposites are held out together
        excluded.update(c for c in concepts if c.family in chosen)
    return frozenset(excluded)


def held_out(seed: int = 0) -> frozenset[str]:
    """The words (all their forms) that never occur in a training split written with this seed."""
    names = {n for c in _held_out_concepts(seed) for n in c.names}
    inflected = {inflect(n) for c in _held_out_concepts(seed) if c.kind in ("noun", "verb") for n in c.names}
    return frozenset(names | inflected)


SECOND_NAME = 0.2  # probability of a concept's second name, so that texts of the same meaning share most of their words

# --- sentences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phrase:
    """``the old doctors``."""

    noun: Concept
    adjective: Concept | None = None
    plural: bool = False


@dataclass(frozen=True)
class Clause:
    """``the old doctor near the huts does not find a ship quickly``."""

    subject: Phrase
    verb: Concept
    object: Phrase
    adverb: Concept | None = None
    negated: bool = False
    place: Phrase | None = None


class SentenceGenerator:
    """Samples clauses over the words of a lexicon and turns them into sentences.

    A sentence is a list of words. The order in which random numbers are used is part of the data: changing it changes
    every generated file.

    Args:
        words: the concepts to use.
        rng: of all random choices.
    """

    def __init__(self, words: Lexicon, rng: random.Random) -> None:
        self.words, self.rng = words, rng

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    # sampling of clauses

    def adjective(self) -> Concept:
        return self.rng.choice(self.words.plain if self.chance(0.5) else self.words.polar)

    def phrase(self, classes: tuple[str, ...], p_adjective: float = 0.4) -> Phrase:
        noun = self.rng.choice(self.words.nouns[self.rng.choice(classes)])
        return Phrase(noun, self.adjective() if self.chance(p_adjective) else None, self.chance(0.3))

    def clause(self, *, negation: float = 0.1, adverb: float = 0.2, place: float = 0.0) -> Clause:
        verb = self.rng.choice(self.words.verbs)
        return Clause(
            self.phrase(ANIMATE),
            verb,
            self.phrase(_objects(verb.family)),
            self.rng.choice(self.words.adverbs) if self.chance(adverb) else None,
            self.chance(negation),
            self.phrase(("building", "vehicle"), 0.0) if self.chance(place) else None,
        )

    # realisation: from clauses to words

    def name(self, concept: Concept, inflected: bool = False) -> str:
        name = concept.names[-1] if self.chance(SECOND_NAME) else concept.names[0]
        return inflect(name) if inflected else name

    def phrase_words(self, phrase: Phrase) -> list[str]:
        article = self.rng.choice(("the", "two") if phrase.plural else ("the", "a"))
        adjective = [self.name(phrase.adjective)] if phrase.adjective else []
        return [article, *adjective, self.name(phrase.noun, phrase.plural)]

    def verb_words(self, clause: Clause, plural: bool) -> list[str]:
        if clause.negated:
            return ["do" if plural else "does", "not", self.name(clause.verb)]
        return [self.name(clause.verb, not plural)]

    def sentence(self, clause: Clause) -> list[str]:
        place = [self.rng.choice(PREPOSITIONS), *self.phrase_words(clause.place)] if clause.place else []
        subject, verb = self.phrase_words(clause.subject) + place, self.verb_words(clause, clause.subject.plural)
        words = [*subject, *verb, *self.phrase_words(clause.object)]
        if clause.adverb:
            adverb = self.name(clause.adverb)
            words = [adverb, *words] if self.chance(0.3) else [*words, adverb]
        return words

    def question(self, clause: Clause, kind: str) -> list[str]:
        """A question of the kind ``who`` (subject), ``what`` (object) or ``does`` (yes or no) for a clause."""
        adverb = [self.name(clause.adverb)] if clause.adverb else []
        if kind == "who":
            return ["who", self.name(clause.verb, True), *self.phrase_words(clause.object), *adverb, "?"]
        auxiliary = "do" if clause.subject.plural else "does"
        words = [auxiliary, *self.phrase_words(clause.subject), self.name(clause.verb)]
        if kind == "what":
            return ["what", *words, *adverb, "?"]
        return [*words, *self.phrase_words(clause.object), *adverb, "?"]

    # changes of clauses

    def other_noun(self, noun: Concept) -> Concept:
        return self.rng.choice([n for n in self.words.nouns[noun.family] if n != noun])

    def change(self, clause: Clause, slot: str) -> Clause:
        """The clause with one slot changed so that the result is neither entailed nor contradicted."""
        if slot == "verb":
            fits = [
                v for v in self.words.verbs if v.family != clause.verb.family and clause.object.noun.family in _objects(v.family)
            ]
            return dataclasses.replace(clause, verb=self.rng.choice(fits))
        if slot in ("subject", "object"):
            phrase = getattr(clause, slot)
            return dataclasses.replace(clause, **{slot: dataclasses.replace(phrase, noun=self.other_noun(phrase.noun))})
        if slot == "adverb":
            adverbs = [a for a in self.words.adverbs if clause.adverb is None or a.family != clause.adverb.family]
            return dataclasses.replace(clause, adverb=self.rng.choice(adverbs))
        side = slot.removesuffix("-adjective")
        phrase = getattr(clause, side)
        pool = self.words.plain + self.words.polar
        fits = [a for a in pool if phrase.adjective is None or a.family != phrase.adjective.family]
        return dataclasses.replace(clause, **{side: dataclasses.replace(phrase, adjective=self.rng.choice(fits))})

    @staticmethod
    def slots(clause: Clause) -> list[str]:
        """The slots of a clause that can be changed."""
        slots = ["subject", "verb", "object"]
        slots += [f"{s}-adjective" for s in ("subject", "object") if getattr(clause, s).adjective]
        return slots + (["adverb"] if clause.adverb else [])

    def generalise(self, clause: Clause, p: float, keep: str = "") -> Clause:
        """Drop adjectives and adverb and replace nouns by their class, each with probability p, except in the slot `keep`."""
        for side in ("subject", "object"):
            phrase = getattr(clause, side)
            if phrase.adjective and keep != f"{side}-adjective" and self.chance(p):
                phrase = dataclasses.replace(phrase, adjective=None)
            if keep != side and phrase.noun.kind == "noun" and self.chance(p):
                phrase = dataclasses.replace(phrase, noun=CLASSES[phrase.noun.family])
            clause = dataclasses.replace(clause, **{side: phrase})
        if clause.adverb and keep != "adverb" and self.chance(p):
            clause = dataclasses.replace(clause, adverb=None)
        return clause

    # relations: each gives a pair of sentences

    def paraphrase(self) -> tuple[list[str], list[str]]:
        clause = self.clause(place=0.1)
        first = self.sentence(clause)
        return first, next(s for s in iter(lambda: self.sentence(clause), None) if s != first)

    def changed(self, count: int) -> tuple[list[str], list[str]]:
        clause = self.clause(place=0.1)
        other, slots = clause, self.slots(clause)
        for slot in self.rng.sample(slots, min(count, len(slots))):
            other = self.change(other, slot)
        return self.sentence(clause), self.sentence(other)

    def unrelated(self) -> tuple[list[str], list[str]]:
        return self.sentence(self.clause()), self.sentence(self.clause())

    def entailment(self) -> tuple[list[str], list[str]]:
        clause = self.clause(negation=0.0)
        if self.chance(0.15):  # a negated clause entails its paraphrase; without these, "not" would reveal the label
            clause = dataclasses.replace(clause, negated=True)
            return self.sentence(clause), self.sentence(clause)
        general = next(c for c in iter(lambda: self.generalise(clause, 0.4), None) if c != clause)
        return self.sentence(clause), self.sentence(general)

    def contradiction(self) -> tuple[list[str], list[str]]:
        clause = self.clause(negation=0.0)
        slots = [s for s in self.slots(clause) if s not in ("subject", "object")]
        slot = self.rng.choice([*slots, "negation"])
        if slot == "negation":
            other = dataclasses.replace(self.generalise(clause, 0.2, keep="verb"), negated=True)
            pair = (clause, other) if self.chance(0.7) else (dataclasses.replace(clause, negated=True), clause)
            return self.sentence(pair[0]), self.sentence(pair[1])
        other = self.generalise(clause, 0.3, keep=slot)
        side = slot.removesuffix("-adjective")
        part = getattr(other, side)
        opposite: Any  # the phrase with the opposite adjective, or the opposite verb or adverb
        if isinstance(part, Phrase):
            opposite = dataclasses.replace(part, adjective=part.adjective and _opposite(part.adjective))
        else:
            opposite = _opposite(part)
        return self.sentence(clause), self.sentence(dataclasses.replace(other, **{side: opposite}))

    def neutral(self) -> tuple[list[str], list[str]]:
        clause = self.clause(negation=0.0)
        if self.chance(0.4):  # the second is more specific than the first
            general = next(c for c in iter(lambda: self.generalise(clause, 0.4), None) if c != clause)
            return self.sentence(general), self.sentence(clause)
        slot = self.rng.choice(["subject", "verb", "object", "subject-adjective", "object-adjective"])
        other = self.change(self.generalise(clause, 0.3, keep=slot), slot)
        if slot in ("subject", "verb", "object") and self.chance(0.2):
            other = dataclasses.replace(other, negated=True)
        return self.sentence(clause), self.sentence(other)

    def property(self, holds: bool) -> tuple[list[str], list[str]]:
        """``the old doctor finds a broad ship``, ``the vessel is wide``; or ``narrow``, if the property must not hold."""
        clause = self.clause(negation=0.0, adverb=0.1)
        subject, object_ = (dataclasses.replace(p, adjective=self.adjective()) for p in (clause.subject, clause.object))
        clause = dataclasses.replace(clause, subject=subject, object=object_)
        phrase = self.rng.choice((subject, object_))
        assert phrase.adjective is not None  # given above
        adjective = phrase.adjective if holds else _opposite(phrase.adjective)
        verb = "are" if phrase.plural else "is"
        return self.sentence(clause), [
            *self.phrase_words(dataclasses.replace(phrase, adjective=None)),
            verb,
            self.name(adjective),
        ]

    def questions(self, same: bool) -> tuple[list[str], list[str]]:
        clause, kind = self.clause(negation=0.0), self.rng.choice(("who", "what", "does"))
        first = self.question(clause, kind)
        if same:
            return first, next(s for s in iter(lambda: self.question(clause, kind), None) if s != first)
        other = self.change(clause, self.rng.choice(self.question_slots(clause, kind)))
        return first, self.question(other, kind)

    def question_slots(self, clause: Clause, kind: str) -> list[str]:
        """The slots of a clause that a question of this kind contains."""
        hidden = {"who": "subject", "what": "object", "does": "-"}[kind]
        return [s for s in self.slots(clause) if not s.startswith(hidden)]

    def answer(self, answers: bool) -> tuple[list[str], list[str]]:
        clause, kind = self.clause(negation=0.0), self.rng.choice(("who", "what"))
        slots = self.question_slots(clause, kind)
        question = self.question(clause, kind)
        if not answers:
            clause = self.change(clause, self.rng.choice(slots))
        return question, self.sentence(clause)

    # pairs of compound sentences, used by tasks only: in the corpus, ``and`` joins only opinions

    def compound(self) -> list[Clause]:
        """Two clauses with different subjects and verbs."""
        first = self.clause(negation=0.0, adverb=0.0)
        clauses = iter(lambda: self.clause(negation=0.0, adverb=0.0), None)
        return [first, next(c for c in clauses if c.subject.noun != first.subject.noun and c.verb != first.verb)]

    def altered(self, clauses: list[Clause], kind: str = "does") -> list[Clause]:
        """The same words said of each other (subjects exchanged), or one slot changed that a question of this kind contains."""
        one, other = clauses
        if self.chance(0.6):
            return [dataclasses.replace(one, subject=other.subject), dataclasses.replace(other, subject=one.subject)]
        slot = self.rng.choice(self.question_slots(one, kind))
        return [self.change(one, slot), other]

    def joined(self, clauses: list[Clause]) -> list[str]:
        """The clauses in either order, joined by ``and``."""
        one, other = self.rng.sample(clauses, 2)
        return [*self.sentence(one), "and", *self.sentence(other)]

    def asked(self, clauses: list[Clause], kind: str) -> list[str]:
        """A question of a kind for each clause, joined by ``and``."""
        one, other = clauses
        return [*self.question(one, kind)[:-1], "and", *self.question(other, kind)]

    def restated(self, same: bool) -> tuple[list[str], list[str]]:
        """A sentence, half of the time compound, and one of the same meaning, or an altered one."""
        if self.chance(0.5):
            return self.paraphrase() if same else self.changed(1)
        clauses = self.compound()
        return self.joined(clauses), self.joined(clauses if same else self.altered(clauses))

    def asked_again(self, same: bool) -> tuple[list[str], list[str]]:
        """A question, mostly compound, and one with the same answer, or an altered one."""
        if self.chance(0.4):
            return self.questions(same)
        clauses, kind = self.compound(), self.rng.choice(("what", "does"))
        return self.asked(clauses, kind), self.asked(clauses if same else self.altered(clauses, kind), kind)

    def inference(self, holds: bool) -> tuple[list[str], list[str]]:
        """A compound sentence, and a sentence that follows from one of its clauses, or from none."""
        clauses = self.compound()
        one, other = self.rng.sample(clauses, 2)
        premise = self.joined(clauses)
        if holds:
            return premise, self.sentence(self.generalise(one, 0.4))
        if self.chance(0.6):  # what one subject does, said of the other
            mixed = dataclasses.replace(one, subject=other.subject)
            return premise, self.sentence(self.generalise(mixed, 0.4, keep="subject"))
        slot = self.rng.choice(self.slots(one))
        return premise, self.sentence(self.change(self.generalise(one, 0.3, keep=slot), slot))

    # sentiment

    def opinion(self, polarity: int, negation: float = 0.25) -> list[str]:
        """A clause of the given polarity: ``the soup is not very good``, ``a cook praises the pie``."""
        if self.chance(0.2):
            verbs = [v for v in self.words.verbs if v.polarity == polarity]
            if verbs:
                verb = self.rng.choice(verbs)
                return self.sentence(Clause(self.phrase(ANIMATE, 0.0), verb, self.phrase(_objects(verb.family), 0.0)))
        phrase = self.phrase(tuple(NOUNS), 0.0)
        negated = self.chance(negation)
        sign = -polarity if negated else polarity
        adjective = self.name(self.rng.choice([a for a in self.words.polar if a.polarity == sign]))
        words = [*self.phrase_words(phrase), "are" if phrase.plural else "is"]
        return [
            *words,
            *(["not"] if negated else []),
            *([self.rng.choice(INTENSIFIERS)] if self.chance(0.4) else []),
            adjective,
        ]

    def review(self, polarity: int) -> list[str]:
        """One or two clauses whose main clause has the given polarity."""
        shape = self.rng.choice(("one", "and", "and", "but", "although"))
        main = self.opinion(polarity)
        if shape == "one":
            return main
        if shape == "and":
            return [*main, "and", *self.opinion(polarity)]
        if shape == "but":
            return [*self.opinion(-polarity), "but", *main]
        concession = ["although", *self.opinion(-polarity)]
        return [*concession, ",", *main] if self.chance(0.5) else [*main, *concession]

    def verdict(self, polarity: int) -> list[str]:
        """Like `review`, but simpler: mostly one or two clauses of the same polarity, rarely negated."""
        main = self.opinion(polarity, 0.1)
        shape = self.rng.choice(("one", "and", "and", "and", "but"))
        if shape == "one":
            return main
        if shape == "and":
            return [*main, "and", *self.opinion(polarity, 0.1)]
        return [*self.opinion(-polarity, 0.1), "but", *main]

    def opinions(self) -> tuple[list[str], list[str]]:
        polarity = self.rng.choice((1, -1))
        return self.review(polarity), self.opinion(polarity)

    # form

    def malformed(self, clause: Clause) -> list[str]:
        """The clause with one grammatical error."""
        fault = self.rng.choice(("agreement", "agreement", "article", "order", "missing", "inanimate"))
        if fault == "inanimate":
            inanimate = tuple(c for c in NOUNS if c not in ANIMATE)
            return self.sentence(dataclasses.replace(clause, subject=self.phrase(inanimate)))
        if fault == "agreement":
            wrong = dataclasses.replace(clause, subject=dataclasses.replace(clause.subject, plural=not clause.subject.plural))
            place = [self.rng.choice(PREPOSITIONS), *self.phrase_words(clause.place)] if clause.place else []
            words = [*self.phrase_words(clause.subject), *place, *self.verb_words(clause, wrong.subject.plural)]
            return words + self.phrase_words(clause.object) + ([self.name(clause.adverb)] if clause.adverb else [])
        words = self.sentence(clause)
        if fault == "article":
            articles = [i for i, w in enumerate(words) if w in ("a", "two")] or [0]
            i = self.rng.choice(articles)
            words[i] = {"a": "two", "two": "a"}.get(words[i], "not")
            return words
        i = self.rng.randrange(len(words) - 1)
        if fault == "order":
            words[i], words[i + 1] = words[i + 1], words[i]
            return words
        del words[self.rng.choice([i for i, w in enumerate(words) if w in _heads()])]
        return words


# --- corpus -----------------------------------------------------------------------------------------------------------

Pair = tuple[list[str], list[str]]
_RELATIONS: dict[str, tuple[int, Callable[[SentenceGenerator], Pair]]] = {  # name in CONNECTIVES: (weight, maker)
    "paraphrase": (6, lambda s: s.paraphrase() if s.chance(0.7) else s.questions(same=True)),
    "entailment": (4, SentenceGenerator.entailment),
    "contradiction": (5, lambda s: s.contradiction() if s.chance(0.7) else s.property(holds=False)),
    "neutral": (4, SentenceGenerator.neutral),
    "one-changed": (5, lambda s: s.changed(1) if s.chance(0.6) else s.questions(same=False)),
    "two-changed": (2, lambda s: s.changed(2)),
    "unrelated": (5, SentenceGenerator.unrelated),
    "answer": (2, lambda s: s.answer(answers=True)),
    "no-answer": (2, lambda s: s.answer(answers=False)),
    "property": (5, lambda s: s.property(holds=True)),
    "sentiment": (4, SentenceGenerator.opinions),
}


def documents(seed: int = 0) -> Iterator[tuple[str, str]]:
    """The pretraining corpus, an endless stream of pairs of sentences; the second begins with the connective between them."""
    rng = random.Random(f"corpus {seed}")
    generator = SentenceGenerator(lexicon(), rng)
    relations, weights = list(_RELATIONS), [weight for weight, _ in _RELATIONS.values()]
    while True:
        for relation in rng.choices(relations, weights, k=256):
            first, second = _RELATIONS[relation][1](generator)
            yield text(first), text([rng.choice(CONNECTIVES[relation]), *second])


def restatements(seed: int = 0) -> Iterator[tuple[str, str]]:
    """An endless stream of pairs of sentences or questions with the same meaning, without connectives."""
    generator = SentenceGenerator(lexicon(), random.Random(f"restatements {seed}"))
    while True:
        first, second = generator.paraphrase() if generator.chance(0.7) else generator.questions(same=True)
        yield text(first), text(second)


# --- tasks ------------------------------------------------------------------------------------------------------------


def _cola(s: SentenceGenerator, label: int) -> Pair:
    clause = s.clause(place=0.4)
    return (s.sentence(clause) if label else s.malformed(clause)), []


def _stsb(s: SentenceGenerator) -> tuple[Pair, float]:
    """A pair with any number of changes, and the shared meaning, 0 to 5: nouns and verb have weight 1, the rest 1/2."""
    clause = s.clause(adverb=0.1)
    rate = s.rng.random()
    other, total, lost = clause, 0.0, 0.0
    for slot in s.slots(clause):
        weight = 1.0 if slot in ("subject", "verb", "object") else 0.5
        total += weight
        if s.chance(rate):
            other, lost = s.change(other, slot), lost + weight
    score = 5 * (1 - lost / total) + s.rng.gauss(0, 0.5)
    return (s.sentence(clause), s.sentence(other)), round(min(5.0, max(0.0, score)) * 5) / 5  # ratings are multiples of 1/5


@dataclass(frozen=True)
class Task:
    """One of GLUE's tasks: text columns, names of the labels (none: a score), and the maker of an example with a label."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    make: Callable[[SentenceGenerator, int], Pair]
    validation: str = "validation"  # name of the file of the validation split


_MNLI = (SentenceGenerator.entailment, SentenceGenerator.neutral, SentenceGenerator.contradiction)

TASKS: dict[str, Task] = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), _cola),
    "sst2": Task(("sentence",), ("negative", "positive"), lambda s, label: (s.verdict(1 if label else -1), [])),
    "mrpc": Task(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        lambda s, label: s.restated(same=bool(label)),
    ),
    "stsb": Task(("sentence1", "sentence2"), (), lambda s, _: s.unrelated()),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), lambda s, label: s.asked_again(same=bool(label))),
    "mnli": Task(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        lambda s, label: _MNLI[label](s),
        "validation_matched",
    ),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment"), lambda s, label: s.answer(answers=not label)),
    "rte": Task(
        ("sentence1", "sentence2"),
        ("entailment", "not_entailment"),
        lambda s, label: s.inference(holds=not label),
    ),
}

SIZES = {"train": 2000, "validation": 400, "tuning": 400}


def examples(task: str, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, list[dict[str, Any]]]:
    """The examples of a task by split (``train``, ``validation``, ``tuning``), with balanced labels and no text in two splits.

    Raises:
        ConfigurationError: there is no task of this name.
    """
    if task not in TASKS:
        raise one_of("task", task, TASKS, "the mini-language world")
    spec, seen, splits = TASKS[task], set[tuple[str, ...]](), {}
    reduced = lexicon().without(_held_out_concepts(seed))
    for split, size in ({**SIZES, **(sizes or {})}).items():
        rng = random.Random(f"{task} {split} {seed}")
        generator = SentenceGenerator(reduced if split == "train" else lexicon(), rng)
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            label: int | float = len(rows) % max(1, len(spec.labels))
            pair, label = (spec.make(generator, int(label)), label) if spec.labels else _stsb(generator)
            texts = tuple(text(words) for words in pair[: len(spec.columns)])
            if texts not in seen:
                seen.add(texts)
                rows.append({**dict(zip(spec.columns, texts, strict=True)), "label": label})
        rng.shuffle(rows)
        splits[split] = [{**row, "idx": i} for i, row in enumerate(rows)]
    return splits


def _file(task: str, split: str) -> str:
    """The path of a split, relative to the root of the mirror."""
    return f"datasets/world/glue/{task}/{TASKS[task].validation if split == 'validation' else split}.parquet"


def files(settings: Mapping[str, Any]) -> list[str]:
    """The paths, relative to the folder given to `write`, of all files that it writes; they do not depend on the settings."""
    return [_file(task, split) for task in TASKS for split in SIZES]


def write(folder: Path, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> None:
    """Write the eight tasks as a hub mirror: ``<folder>/datasets/world/glue/<task>/<split>.parquet``.

    The splits are ``train``, ``validation`` (``validation_matched`` for mnli, as in GLUE) and ``tuning``, which has the
    distribution of the validation split and is used to choose learning rates. The same settings give the same bytes.

    Args:
        folder: root of the mirror.
        seed: of the examples and of the held-out concepts.
        sizes: examples by split, where they differ from `SIZES`.

    Raises:
        ConfigurationError: `sizes` has an unknown split.
    """
    from datasets import ClassLabel, Dataset, Features, Value  # takes a second to import, and only writing needs it

    for split in set(sizes or {}) - set(SIZES):
        raise one_of("split", split, SIZES, "the sizes of the mini-language world")
    for name, task in TASKS.items():
        label = ClassLabel(names=list(task.labels)) if task.labels else Value("float32")
        features = Features({**{c: Value("string") for c in task.columns}, "label": label, "idx": Value("int32")})
        for split, rows in examples(name, seed, sizes).items():
            with atomic(Path(folder) / _file(name, split)) as partial:
                Dataset.from_list(rows, features=features).to_parquet(partial)
