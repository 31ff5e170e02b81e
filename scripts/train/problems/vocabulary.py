"""Names and nouns for the texts of word problems."""


def _words(text: str) -> list[str]:
    return text.split()


WOMEN = _words("""
Aaliyah Abena Aiko Aisha Alice Amara Amelie Amina Ana Anna Aoife Asha Astrid Ayumi Beatriz Bianca
Camila Carmen Chiara Chloe Clara Daria Deepa Diana Ece Elena Elif Ella Emily Emma Esra Esther Eva
Fatima Fatou Freya Gabriela Giulia Grace Greta Hana Hannah Helga Ines Ingrid Irina Isabel Ivana
Jana Jasmine Jing Julia Kaori Katarina Kavya Keiko Khadija Kiri Laila Lan Laura Layla Leila Lena
Lila Lin Linh Lucia Maja Malia Maria Marta Maya Mei Mia Mina Miriam Nadia Naomi Natalia Ngozi Nia
Nina Noor Nora Olga Olivia Paula Petra Priya Rania Rosa Ruth Sakura Sana Sara Shirin Sita Sofia
Sophie Sunita Svetlana Tanya Thandi Tuyet Valentina Vera Wanjiru Xiu Yara Yasmin Yuki Zahra Zainab
Zoe Zofia
""")
MEN = _words("""
Aarav Abdul Adam Ahmed Akira Alejandro Alex Ali Amir Anders Andre Anton Arjun Arthur Ben Bilal
Boris Bruno Carlos Chen Chidi Dan Daniel David Deniz Diego Dmitri Eduardo Elias Emeka Emil Emre
Enzo Erik Ethan Farid Felix Fernando Finn Francois Gabriel George Giorgi Hamid Hans Haruki Hassan
Henry Hiro Hugo Ibrahim Igor Isaac Ismail Ivan Jack Jakub James Jamal Jan Javier Jin Joao John
Jonas Jose Juan Kai Karim Kenji Khalid Kofi Kwame Lars Leo Liam Luca Luis Lukas Mahmoud Malik Marco
Mateo Max Mehmet Michal Miguel Mikhail Minh Mohammed Nathan Nikhil Nikolai Noah Oleg Oliver Omar
Oscar Pablo Pavel Pedro Peter Pierre Rafael Raj Ravi Rohan Sam Samir Sanjay Santiago Sergei Sipho
Stefan Sven Takeshi Tariq Thabo Theo Thomas Tom Tomas Viktor Vikram Wei William Yusuf Zhang
""")

# Things that one can own, buy, share and put into boxes. An irregular plural follows a slash.
_THINGS = """
apple, badge, bagel, ball, balloon, banana, bead, bell, book, bookmark, bottle, bowl, bracelet,
brick, brush/brushes, bun, button, candle, cap, card, carrot, chair, cherry/cherries, coin, comic,
cookie, crayon, cup, cushion, doll, donut, egg, envelope, eraser, feather, fig, flag, flower, fork,
game, glass/glasses, glove, grape, hammer, hat, jar, key, kite, knife/knives, lamp, lemon,
lollipop, magnet, mango/mangoes, map, marble, mask, medal, melon, mirror, muffin, mug, nail,
napkin, necklace, notebook, onion, orange, pancake, peach/peaches, pear, pebble, pen, pencil, pie,
pillow, pin, plate, plum, postcard, poster, potato/potatoes, puzzle, ribbon, ring, robot, roll,
rose, ruler, sandwich/sandwiches, scarf/scarves, seed, shell, shirt, sock, spoon, stamp, star,
sticker, stone, tile, ticket, tomato/tomatoes, towel, toy, tulip, vase, waffle, whistle
"""
_BOXES = """
box/boxes, bag, basket, crate, jar, drawer, tin, packet, case, bucket, carton, tray, sack, chest
"""
_ANIMALS = """
cow, goat, horse, sheep/sheep, pig, dog, cat, donkey, rabbit, camel, llama, pony/ponies, lamb,
calf/calves
"""
_VEHICLES = """
car, bus/buses, van, taxi, motorbike, coach/coaches, jeep, scooter, lorry/lorries, tractor
"""


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return the singular and the plural of each noun."""
    pairs = []
    for noun in text.split(","):
        singular, _, plural = noun.strip().partition("/")
        pairs.append((singular, plural or f"{singular}s"))
    return pairs


THINGS = _pairs(_THINGS)
BOXES = _pairs(_BOXES)
ANIMALS = _pairs(_ANIMALS)
VEHICLES = _pairs(_VEHICLES)
PLACES = _words("shop market library museum kitchen school garden store attic cellar office shed")
INGREDIENTS = _words(
    "flour sugar rice butter salt oats honey milk cocoa cream cheese beans lentils pasta corn nuts"
)
CITIES = _words("""
Paris Cairo Lima Oslo Delhi Tokyo Lagos Rome Berlin Madrid Hanoi Seoul Quito Dublin Vienna Ankara
Nairobi Boston Chicago Toronto Sydney Warsaw Prague Athens Lisbon Dakar Accra Kyoto Mumbai Bogota
""")
NUMBER_WORDS = _words("zero one two three four five six seven eight nine ten eleven twelve")

# Phrases in the wordings of word problems, and others that mean the same.
SYNONYMS = (
    (" does {A} have?", " has {A}?"),
    (" are left?", " remain?"),
    (" is left?", " remains?"),
    (" buys ", " purchases "),
    (" bought ", " purchased "),
    (" in all?", " in total?"),
    (" in all?", " altogether?"),
    (" together?", " in total?"),
    ("How much does {she} pay?", "What does {she} pay?"),
    ("How much does {she} pay?", "How much is that?"),
    ("How much do ", "What do "),
    ("How much does one ", "What does one "),
    ("What does it cost", "How much does it cost"),
    (" gives ", " hands "),
    (" children ", " kids "),
    (" a week", " per week"),
    (" a day", " per day"),
    (" an hour", " per hour"),
    (" a minute", " per minute"),
    (" every ", " each "),
    (" km per hour", " km/h"),
    ("} kilometres", "} km"),
    ("} metres", "} m"),
    (" have now?", " have then?"),
    ("There are ", "We have "),
    ("What is the number?", "Find the number."),
    ("What is the number?", "Which number is it?"),
    (" costs {p} dollars", " is {p} dollars"),
    (" travels ", " drives "),
)
CURRENCIES = ("euros", "pounds", "francs")
ASIDES = (
    "It is a sunny day.",
    "It is Monday.",
    "{name} watches.",
    "{name} is {n} years old.",
    "{name} has {n} cousins.",
    "{name} counts to {n}.",
    "{name} has a question.",
    "Here is a problem.",
    "The bus comes in {n} minutes.",
    "{name} lives at number {n}.",
)
