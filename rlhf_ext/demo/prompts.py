"""Openings of everyday sentences, neutral in tone, for a policy to continue."""

from dataclasses import dataclass

FRAMES_PER_SUBJECT = 3

# Each frame stops where a feeling may follow, so that the continuation and not the prompt decides the tone.
THING_FRAMES = (
    "Yesterday, {x} made me",
    "This morning {x} was",
    "We all thought {x} would be",
    "My sister says {x} is",
    "In the end, {x} was",
    "When I saw {x}, I",
    "To my mother, {x} is",
    "Last week {x} made everyone",
    "Looking at {x}, he felt",
    "Everyone who saw {x} felt",
    "I told them {x} was",
)
DOING_FRAMES = (
    "After {x}, I felt",
    "For my father, {x} is",
    "Today, {x} made everyone",
    "I think {x} is",
    "Lately, {x} makes me",
    "She said {x} was",
    "To us, {x} was",
)


@dataclass(frozen=True)
class Topic:
    """Subjects of one topic: `things` are singular noun phrases, `doings` are gerunds; every frame fits every one."""

    name: str
    things: tuple[str, ...]
    doings: tuple[str, ...]


TRAIN_TOPICS = (
    Topic(
        "food",
        ("the corner bakery", "the lunch menu", "the tomato soup", "the new waiter", "the pasta recipe"),
        ("eating at the diner", "cooking for six people", "baking bread at home"),
    ),
    Topic(
        "travel",
        ("the city bus", "the train station", "the hotel room", "the taxi driver", "the road to town"),
        ("taking the night train", "packing my suitcase", "driving to the coast"),
    ),
    Topic(
        "weather",
        ("the morning fog", "the weather report", "the first snow", "the summer heat", "the wind outside"),
        ("walking in the rain", "waiting for spring", "watching the clouds"),
    ),
    Topic(
        "work",
        ("the new office", "my manager", "the Monday meeting", "the job interview", "the weekly report"),
        ("working from home", "writing long emails", "changing jobs"),
    ),
    Topic(
        "school",
        ("the math teacher", "the history class", "the school library", "the final exam", "my homework"),
        ("learning to read", "studying for the test", "speaking in class"),
    ),
    Topic(
        "family",
        ("my uncle", "the family dinner", "my grandmother", "the baby", "my cousin"),
        ("visiting my aunt", "calling my parents", "raising two boys"),
    ),
    Topic(
        "pets",
        ("the neighbor's dog", "the gray cat", "our hamster", "the parrot", "the little puppy"),
        ("feeding the cats", "walking the dog", "training a puppy"),
    ),
    Topic(
        "sport",
        ("the tennis coach", "the soccer match", "the home team", "the running track", "the new goalkeeper"),
        ("running in the park", "going to the gym", "watching the match"),
    ),
    Topic(
        "music",
        ("the jazz concert", "the old piano", "the singer", "the radio station", "the school band"),
        ("singing in the choir", "listening to the drums", "learning the guitar"),
    ),
    Topic(
        "shopping",
        ("the shoe store", "the cashier", "the farmers market", "the blue jacket", "the grocery bill"),
        ("buying new shoes", "standing in line", "ordering clothes online"),
    ),
    Topic(
        "technology",
        ("my phone", "the new laptop", "the software update", "the robot", "the camera"),
        ("fixing the printer", "reading the manual", "typing on a tablet"),
    ),
    Topic(
        "garden",
        ("the rose bush", "the vegetable garden", "the apple tree", "the lawn", "the gardener"),
        ("planting tomatoes", "watering the flowers", "sitting under the oak"),
    ),
    Topic(
        "home",
        ("the kitchen", "the leather sofa", "the landlord", "my bedroom", "the front door"),
        ("painting the walls", "washing the windows", "moving to an apartment"),
    ),
    Topic(
        "town",
        ("the city council", "the new bridge", "the post office", "the mayor", "the main street"),
        ("living downtown", "crossing the square", "riding the elevator"),
    ),
    Topic(
        "books",
        ("the second chapter", "the detective story", "the author", "the newspaper", "the poem"),
        ("reading at night", "writing a diary", "going to the bookshop"),
    ),
    Topic(
        "crafts",
        ("the wooden table", "the quilt", "the pottery class", "the sewing machine", "the carpenter"),
        ("knitting a scarf", "drawing a portrait", "building a shelf"),
    ),
)

HELD_OUT_TOPICS = (
    Topic(
        "health",
        ("the dentist", "the nurse", "the eye doctor", "the hospital corridor", "the yoga lesson"),
        ("sleeping eight hours", "visiting the clinic", "drinking more water"),
    ),
    Topic(
        "sea",
        ("the beach house", "the ferry", "the fisherman", "the lighthouse", "the sailing boat"),
        ("swimming in the ocean", "collecting shells", "camping by the lake"),
    ),
    Topic(
        "cinema",
        ("the movie", "the actor", "the theater ticket", "the documentary", "the television series"),
        ("watching cartoons", "filming a scene", "sitting in the front row"),
    ),
    Topic(
        "visits",
        ("the birthday cake", "the guest", "the wedding speech", "the photo album", "the invitation"),
        ("hosting the visitors", "dancing on stage", "lighting the candles"),
    ),
    Topic(
        "animals",
        ("the elephant", "the zoo", "the horse", "the wild goose", "the beehive"),
        ("riding a pony", "milking the cow", "feeding the ducks"),
    ),
)


def _openings(topics: tuple[Topic, ...]) -> list[str]:
    """Three frames for each subject, going round so that every frame is used about equally often."""
    openings = []
    for kind, frames in (("things", THING_FRAMES), ("doings", DOING_FRAMES)):
        turn = 0
        for topic in topics:
            for subject in getattr(topic, kind):
                openings += [frames[(turn + i) % len(frames)].format(x=subject) for i in range(FRAMES_PER_SUBJECT)]
                turn += FRAMES_PER_SUBJECT
    return openings


def demo_prompts() -> tuple[list[str], list[str]]:
    """
    Openings of everyday sentences, such as "Yesterday, the city bus made me", in a fixed order.

    The split is by topic: no subject of a held-out prompt occurs in training, so held-out prompts test how far what
    was learned carries. Every opening is neutral to the gold scorer (VADER compound exactly 0).

    Returns:
        `tuple[list[str], list[str]]`: the prompts for training (384) and the held-out ones (120).
    """
    return _openings(TRAIN_TOPICS), _openings(HELD_OUT_TOPICS)
