"""English nouns from WordNet: what a name is an image of, and the wider words for it.

Synsets are named by their offset in `data.noun`, which is a place in the file: only lines that are asked for
are read. The files' form: WordNet's manual page wndb(5).
"""

from collections.abc import Iterator, Sequence

# Lexicographer files of nouns for things one can draw: lexnames(5).
ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PERSON, PLANT = 5, 6, 8, 13, 17, 18, 20
DRAWABLE = frozenset({ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PERSON, PLANT})
_LONGEST_PATH = 12  # synsets on the way up
_MOST_WORDS = 3  # in a name that is a plain noun phrase
# Wider words that people use, by the word of WordNet that stands for each.
_SAME = """
    animal bird fish insect reptile amphibian mammal dog cat horse monkey bear snake lizard shark whale
    turtle frog spider crustacean rodent dinosaur butterfly plant flower tree cactus vegetable mushroom
    nut dessert cake candy bread meat cheese sandwich pasta vehicle car truck boat ship aircraft
    airplane helicopter train bicycle wheel tool weapon sword knife gun axe hammer building house tower
    temple bridge furniture chair table bed lamp clothing hat shoe coat dress helmet glove armor bag
    bottle box cup pot toy ball jewel machine computer telephone clock camera musical_instrument drum
    guitar book lock door window sign flag mask hand foot bone eye mountain star planet rock soldier
    doctor musician athlete cook artist
"""
_WIDER = {word: word.replace("_", " ") for word in _SAME.split()}
_WIDER |= {
    "edible_fruit": "fruit",
    "beverage": "drink",
    "motor_vehicle": "vehicle",
    "seafood": "seafood",
    "craft": "vehicle",
    "garment": "clothing",
    "footwear": "footwear",
    "headdress": "hat",
    "person": "person",
    "food": "food",
    "foodstuff": "food",
    "nutriment": "food",
    "body_part": "body part",
}


class Nouns:
    """WordNet's nouns, of its files `dict/index.noun` and `dict/data.noun`."""

    def __init__(self, index: bytes, data: bytes) -> None:
        self._data = data
        self._senses: dict[str, tuple[int, ...]] = {}
        for line in index.decode("ascii").splitlines():
            if not line.startswith(" "):
                word, _, count, *fields = line.split()
                self._senses[word] = tuple(map(int, fields[-int(count) :]))

    def sense(self, words: Sequence[str], kinds: frozenset[int] | None = None) -> int | None:
        """The synset of the noun at the end of a name: the first, or the first of those lexicographer files.

        `["jumping", "dog"]` gives that of `dog`; the longest ending that WordNet knows counts.
        """
        for start in range(len(words)):
            word = "_".join(words[start:]).lower()
            for form in (word, word.removesuffix("s"), word.removesuffix("es")):
                if senses := self._senses.get(form):
                    fitting = [sense for sense in senses if kinds is None or self._kind(sense) in kinds]
                    return fitting[0] if fitting else None
        return None

    def draws(self, words: Sequence[str]) -> bool:
        """Whether a name is a short noun phrase for a thing: its head's first sense is one."""
        if not 1 <= len(words) <= _MOST_WORDS or not all(word.isalpha() for word in words):
            return False
        sense = self.sense(words)
        return sense is not None and self._kind(sense) in DRAWABLE

    def wider(self, sense: int) -> list[str]:
        """Everyday words for what a synset is a kind of, the narrowest first: fruit, food."""
        found = []
        for synset in self._above(sense):
            words = [_WIDER[word] for word in self._words(synset) if word in _WIDER]
            found += words[:1]
        return list(dict.fromkeys(found))

    def _above(self, sense: int) -> Iterator[int]:
        """The synsets over one, level by level."""
        level, seen = [sense], {sense}
        for _ in range(_LONGEST_PATH):
            level = [above for synset in level for above in self._hypernyms(synset) if above not in seen]
            seen.update(level)
            yield from level

    def _fields(self, synset: int) -> list[str]:
        line = self._data[synset : self._data.index(b"\n", synset)]
        return line.decode("ascii", "replace").partition(" | ")[0].split()

    def _kind(self, synset: int) -> int:
        return int(self._fields(synset)[1])

    def _words(self, synset: int) -> list[str]:
        fields = self._fields(synset)
        return [fields[4 + 2 * place].lower() for place in range(int(fields[3], 16))]

    def _hypernyms(self, synset: int) -> list[int]:
        fields = self._fields(synset)
        pointers = fields[5 + 2 * int(fields[3], 16) :]
        return [
            int(offset)
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=False)
            if symbol == "@"
        ]
