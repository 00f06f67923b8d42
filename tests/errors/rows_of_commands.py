"""Wrong input of the commands; tests/cli/test_one_message.py has how it is printed."""

from error_row import Row

from rlhf_ext.cli import main
from rlhf_ext.cli.recipe_file import read_settings_file
from rlhf_ext.cli.shipped import launch_path, recipe_path

LOG = "step,objective/score,kl/ref,kl/beta\n1,0.1,0.2,0.1\n2,0.2,0.3,0.1\n"


def command(*words):
    """With the traceback, so that the error arrives here; `LOG` stands for a log, and `FILE` for another file."""

    def act(world):
        files = {"LOG": world.file("log.csv", LOG), "FILE": world.file("file.txt", "x"), "FOLDER": str(world.tmp_path)}
        main(["--debug", *(files.get(first, first) + rest for first, rest in map(split, words))])

    def split(word):
        first, slash, rest = word.partition("/")
        return (first, slash + rest) if first in ("LOG", "FILE", "FOLDER") else (word, "")

    return act


def recipe(content):
    return lambda world: read_settings_file(world.file("recipe.yaml", content))


COMMANDS = [
    Row("recipe: empty", recipe(""), ValueError,
        ("--config: ", "recipe.yaml' is empty", "one setting a line, such as `learning_rate: 1.0e-6`")),
    Row("recipe: comments alone", recipe("# beta: 0.1\n"), ValueError, ("recipe.yaml' is empty", "one setting a line")),
    Row("recipe: a list", recipe("- beta: 0.1\n"), ValueError,
        ("recipe.yaml' holds a list and no settings", "one setting a line")),
    Row("recipe: a word", recipe("beta\n"), ValueError,
        ("recipe.yaml' holds 'beta' and no settings", "one setting a line")),
    Row("recipe: a name that is none", recipe("on: 0.1\n"), ValueError,
        ("recipe.yaml': True (bool) is no name of a setting", "one setting a line")),
    Row("recipe: no YAML", recipe("beta: [1"), ValueError, ("recipe.yaml' is not YAML: ", "line 1", "one setting a line")),
    Row("recipe: no text", recipe(b"\xff\xfe\x00"), ValueError, ("recipe.yaml' is not YAML: ", "one setting a line")),
    Row("recipe: a folder", lambda w: recipe_path(str(w.tmp_path), "ppo"), ValueError,
        ("--config: ", "is a folder; give a YAML file")),
    Row("recipe: a folder of recipes", lambda w: [w.file("a.yaml", "x"), recipe_path(str(w.tmp_path), "ppo")], ValueError,
        ("--config: ", "is a folder; give one of ", "/a.yaml")),
    Row("recipe: not there", lambda _: recipe_path("lost", "sft"), ValueError,
        ("there is no file 'lost' in ", "Give a path, or one of llama-3.1-8b-lora-sft, qwen2.5-0.5b-sft.")),
    Row("recipe: of another program", lambda _: recipe_path("qwen2.5-0.5b-sft", "ppo"), ValueError,
        ("'qwen2.5-0.5b-sft' is a recipe of `rlhf-ext sft`", "a path, or demo, llama-3.1-8b-lora-ppo, qwen2.5-0.5b-ppo")),
    Row("launch: a folder", lambda w: launch_path(str(w.tmp_path)), ValueError,
        ("--accelerate_config: ", "is a folder; give a YAML file")),
    Row("launch: empty", lambda w: launch_path(w.file("launch.yaml", "")), ValueError,
        ("--accelerate_config: ", "launch.yaml' is empty", "`accelerate config` writes one; rlhf-ext ships ddp, ")),
    Row("launch: a list", lambda w: launch_path(w.file("launch.yaml", "- a")), ValueError,
        ("launch.yaml' holds a list and no settings", "`accelerate config` writes one")),
    Row("launch: a list in JSON", lambda w: launch_path(w.file("launch.json", "[1]")), ValueError,
        ("launch.json' holds a list and no settings", "`accelerate config` writes one")),
    Row("launch: no JSON", lambda w: launch_path(w.file("launch.json", "{")), ValueError,
        ("launch.json' is not JSON: ", "`accelerate config` writes one")),
    Row("command: an option that is none", command("diagnose", "LOG", "--fail_onn", "warn"), ValueError,
        ("unknown option --fail_onn (did you mean --fail_on?)", "`rlhf-ext diagnose --help` lists what it takes")),
    Row("command: a second log", command("diagnose", "LOG", "other.csv"), ValueError,
        ("'other.csv' is one argument too many", "rlhf-ext diagnose takes one PATH. Call it once for each.")),
    Row("command: an argument where none is taken", command("env", "torch"), ValueError,
        ("'torch' is one argument too many", "rlhf-ext env takes options alone", "--help` lists what it takes")),
    Row("command: no script", command("migrate", "FOLDER/lost.py"), FileNotFoundError,
        ("there is no file ", "/lost.py' in ", "give a Python file or a notebook")),
    Row("command: a recipe as script", lambda w: main(["--debug", "migrate", w.file("old.yaml", "kl_coef: 0.1")]),
        ValueError, ("old.yaml' is a recipe: `rlhf-ext check --config ", "says what its old names are now")),
    Row("command: a page in no folder", command("diagnose", "LOG", "--html", "FOLDER/no/page.html"), ValueError,
        ("--html: there is no folder ", "/no' for the page", "make it, or give another file")),
    Row("command: a folder as page", command("diagnose", "LOG", "--html", "FOLDER"), ValueError,
        ("--html: ", "is a folder; give a file, such as ", "/page.html'")),
    Row("command: a target without its unit", command("diagnose", "LOG", "--kl_target", "6"), ValueError,
        ("--kl_target 6 needs --kl_unit sequence or --kl_unit token",)),
    Row("command: a unit without a target", command("diagnose", "LOG", "--kl_unit", "token"), ValueError,
        ("--kl_unit token is the unit of --kl_target, which is not given", "give both")),
    Row("command: a folder that cannot be made", command("demo", "--output", "FILE/run"), ValueError,
        ("--output ", "/file.txt/run cannot be made (Not a directory)", "give a folder elsewhere")),
    Row("command: a folder of other things", command("demo", "--output", "FOLDER"), ValueError,
        ("--output ", " holds other files and no run of the demo", "give a folder that is new or holds a run")),
    Row("log: a run in a log without names", command("diagnose", "LOG", "--run", "seed-2"), ValueError,
        ("log.csv (CSV table) holds one run, without a name", "leave out the run 'seed-2'")),
]  # fmt: skip
