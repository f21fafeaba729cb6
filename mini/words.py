# ruff: noqa: SIM905 - plain words in a string read better than quoted ones
"""Word lists of the small world. Words are short so that a small BPE vocabulary gives each of them one token."""

WOMEN = tuple("Anna Beth Clara Dora Edith Flora Greta Hanna Iris Julia Kate Lena Mia Nora Olga Petra".split())
MEN = tuple("Adam Boris Carl David Erik Frank Gus Hugo Ivan Jack Leo Max Nils Otto Paul Ralf".split())
LAST_NAMES = tuple(
    "Reed Cole Stone Field Marsh Wood Hill Brook Frost Lane Moor Nash Park Quinn Rose Shaw "
    "Thorn Vance West York Abbot Banks Cross Dale Ellis Finch Grant Hale Jones King Lloyd Page".split()
)

# Attribute values. None starts with a vowel where a phrase says "a {v}".
TOWNS = tuple(
    "Arden Belford Corby Denton Elton Farley Gorton Holm Kirby Linden Morley Norton "
    "Oakham Penley Ripon Selby Tarn Upton Wells Yarm Brant Clun Dover Fleet".split()
)
JOBS = tuple(
    "baker smith potter weaver miller tailor fisher shepherd nurse teacher doctor painter "
    "singer farmer butcher printer sailor hunter clerk judge cook barber tanner guard".split()
)
PETS = tuple("cat dog goat goose hen pony rabbit parrot turtle lamb pig duck mouse crow frog snail".split())
INSTRUMENTS = tuple(
    "fiddle harp flute drum piano horn lute bell guitar whistle cello tuba banjo oboe viola gong".split()
)
FOODS = tuple("soup bread rice beans fish cheese stew cake pasta porridge salad corn peas ham honey jam".split())
COLORS = tuple("red blue green white black brown gray pink purple golden silver tan".split())

# Things are given as presents and worked on with tools.
THINGS = tuple(
    "lamp chair table box clock boat cart door fence kettle ladder mirror net plate rope saddle "
    "shoe sword tent wheel basket barrel bench bottle bucket candle drawer gate kite pipe shelf trunk".split()
)
VERBS = tuple(
    "mend polish paint cut open lift clean measure carve bend fill hang join mark move press "
    "scrape seal shape split stain tie turn weigh".split()
)
TOOLS = tuple(
    "hammer saw file brush knife needle chisel drill wrench spoon sponge hook clamp shovel rake lever".split()
)

ACTIVITIES = (
    "feeds the hens",
    "sweeps the yard",
    "lights the fire",
    "milks the cow",
    "opens the gate",
    "walks to the mill",
    "rows to the shore",
    "writes a letter",
    "reads the news",
    "bakes a cake",
    "waters the garden",
    "picks some plums",
    "chops some wood",
    "counts the coins",
    "rings the bell",
    "winds the clock",
    "visits the market",
    "sits by the river",
    "climbs the tower",
    "calls the children",
    "sings a song",
    "draws a map",
    "packs a basket",
    "fills the bucket",
    "locks the door",
    "buys some bread",
    "cleans the stable",
    "mends the net",
    "rides to the village",
    "washes the plates",
    "makes some tea",
    "plants some beans",
)
COUNTED = tuple("plums pears nuts eggs coins stamps shells beads cards seeds".split())
