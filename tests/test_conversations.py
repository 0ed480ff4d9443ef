"""5.8 The examples that hold conversations, from start to end, and where users race."""

import importlib.util
import sys
import threading

import pytest

from telesession.memory import default_store
from telesession.testing import Chat
from tests.helpers import run_together
from tests.stores import TIMEOUT
from tests.test_examples import EXAMPLES, SETTINGS

pytestmark = pytest.mark.thorough

HELP = "Please answer, or go /back, or /cancel."


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Import an example, with no sessions stored."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    default_store.clear()
    loaded = []

    def load(name):
        [path] = [path for path in EXAMPLES if path.stem == name]
        spec = importlib.util.spec_from_file_location(f"example_{name}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # next steps are pickled by name
        spec.loader.exec_module(module)
        loaded.append(module)
        return module

    yield load
    default_store.clear()
    for module in loaded:
        timer = getattr(module.bot.next_step_backend, "timer", None)
        if timer is not None and timer.is_alive():
            timer.cancel()
            timer.join(TIMEOUT)
        if hasattr(module, "engine"):
            module.engine.dispose()


@pytest.mark.parametrize("example", ["wizard", "register_next_step"])
class TestForm:
    @pytest.fixture
    def says(self, load, example):
        """What is answered first to what the user says."""
        chat = Chat(load(example).bot)
        return lambda text, **fields: chat.send(text, **fields)[0]

    @pytest.fixture
    def right(self, example):
        """How it asks whether all is right: one of them with buttons."""
        return "Is that right?" if example == "wizard" else "Is that right? (yes or no)"

    def test_from_start_to_end(self, says, right, example):
        assert says("hi") == "/start begins the form."
        assert says("/start") == "What is your name?"
        assert says("Ada") == "How old are you?"
        assert says("36") == "Where do you live?"
        assert says("London") == f"Ada, 36, from London. {right}"
        again = HELP if example == "wizard" else f"Ada, 36, from London. {right}"
        assert says("perhaps") == again
        assert says("Yes") == "Thank you, Ada!"
        assert says("/back") == "/start begins the form."

    def test_mistakes(self, says, right):
        """What can't be an answer is none, and the question stays open."""
        says("/start")
        assert says("/help") == HELP
        assert says("{age}") == "How old are you?"
        for wrong in ("old", "0", "130", "-5", "3.5"):
            assert says(wrong) == "That is no age. A number, please, such as 36."
        assert says("129") == "Where do you live?"
        assert says("x") == f"{{age}}, 129, from x. {right}"

    def test_back_to_the_first_question(self, says, right):
        """And what was answered meanwhile may be answered anew."""
        for text in ("/start", "Ada", "36", "Paris"):
            says(text)
        assert says("/back") == "Where do you live?"
        assert says("/back") == "How old are you?"
        assert says("/back") == "What is your name?"
        assert says("/back") == "What is your name?"
        for text in ("Eve", "37"):
            says(text)
        assert says("Rome") == f"Eve, 37, from Rome. {right}"
        assert says("no") == "What is your name?"

    @pytest.mark.parametrize("answered", [["Ada"], ["Ada", "36"], ["Ada", "36", "London"]])
    def test_cancel_and_start_anywhere(self, says, answered):
        for text in ("/start", *answered):
            says(text)
        assert says("/start") == "What is your name?"
        for text in answered:
            says(text)
        assert says("/cancel") == "Forgotten. /start begins again."
        assert says("36") == "/start begins the form."


def test_wizard_two_quick_messages(load, monkeypatch):
    """The second comes while the first is handled, and answers the second question."""
    bot = load("wizard").bot
    chat, second, send = Chat(bot), [], bot.send_message
    chat.send("/start")
    thread = threading.Thread(target=lambda: second.extend(chat.send("36")), daemon=True)

    def send_slowly(chat_id, text, **options):
        if text == "How old are you?":
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
        return send(chat_id, text, **options)

    monkeypatch.setattr(bot, "send_message", send_slowly)
    assert chat.send("Ada") == ["How old are you?"]
    thread.join(TIMEOUT)
    assert second == ["Where do you live?"]


def test_wizard_with_buttons(load):
    """From start to end with clicks; what is not on a button is asked for again."""
    chat = Chat(load("wizard").bot)
    for text in ("/start", "Ada", "36"):
        [asked] = chat.send(text)
    assert asked.buttons == ["London", "Paris"]
    assert chat.click("Paris")[1] == "Ada, 36, from Paris. Is that right?"
    assert chat.send("perhaps") == [HELP, "Ada, 36, from Paris. Is that right?"]
    assert chat.click("yes")[1:] == ["Thank you, Ada!"]


def test_register_next_step_photo(load):
    """A next step gets every kind of message; a photo is no name."""
    chat = Chat(load("register_next_step").bot)
    chat.send("/start")
    photo = {"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}
    assert chat.send(photo=[photo])[-1] == "What is your name?"
    assert chat.send("Ada") == ["How old are you?"]


class TestInline:
    @pytest.fixture
    def bot(self, load):
        bot = load("inline").bot
        for note in ("Buy milk", "Buy bread", "Read"):
            assert Chat(bot).send(note) == ["Noted."]
        return bot

    def test_notes_used_most_come_first(self, bot):
        chat = Chat(bot)
        assert chat.inline("buy") == ["Buy milk", "Buy bread"]
        assert chat.choose(chat.inline("buy")[1]) == []
        assert chat.inline("") == ["Buy bread", "Buy milk", "Read"]
        assert chat.send("/notes") == ["Buy milk (0)\nBuy bread (1)\nRead (0)"]

    def test_a_chosen_note_is_no_new_one(self, bot):
        """Telegram shows the bot what the user sent through it."""
        via = {"id": 1, "is_bot": True, "first_name": "Bot"}
        assert Chat(bot).send("Read", via_bot=via) == []

    def test_notes_are_private(self, bot):
        """Neither other users nor other chats see them."""
        assert Chat(bot, user=2).inline("") == []
        assert Chat(bot, user=2).send("/notes") == ["No notes yet. Write me one."]
        assert Chat(bot, chat=-100).inline("") == []


class TestGroupGame:
    @pytest.fixture
    def group(self, load, monkeypatch):
        game = load("group_game")
        monkeypatch.setattr(game.random, "randint", lambda low, high: 42)
        return Chat(game.bot, chat=-100)

    def test_from_start_to_end(self, group):
        """Tries are the group's, wins the player's; the record stays."""
        assert group.send("/guess 42") == ["There is nothing to guess. /play?"]
        for record, wins in [(3, 1), (3, 2)]:
            group.send("/play")
            assert group.send("/guess a number") == ["Guess a number: /guess 50"]
            assert group.send("/guess 41") == ["Higher!"]
            assert group.send("/guess 43", user=2) == ["Lower!"]
            assert group.send("/guess 42", user=2) == [
                f"User 2 has it, at try 3! The record here is {record}. Your wins: {wins}. "
                "/play again?"
            ]
        assert group.send("/wins", user=2) == ["Your wins: 2"]
        assert group.send("/wins") == ["Your wins: 0"]

    def test_the_group_becomes_a_supergroup(self, group):
        """5.6 The game goes on there; here is none any more."""
        group.send("/play")
        group.send("/guess 41")
        group.send("", migrate_to_chat_id=-1007)
        assert group.send("/guess 42") == ["There is nothing to guess. /play?"]
        group.chat["id"] = -1007
        assert "at try 2" in group.send("/guess 42")[0]

    def test_only_one_wins(self, group, quick_switches):
        """Eight players guess the number at once."""
        group.send("/play")
        told = run_together(
            *(lambda player=n: group.send("/guess 42", user=player)[0] for n in range(1, 9))
        )
        assert len([text for text in told if "has it, at try 1!" in text]) == 1
        assert told.count("There is nothing to guess. /play?") == 7
        wins = [group.send("/wins", user=player)[0] for player in range(1, 9)]
        assert sorted(wins) == ["Your wins: 0"] * 7 + ["Your wins: 1"]


class TestLanguage:
    """A language for each user, in all chats."""

    @pytest.fixture
    def language(self, load):
        return load("language")

    def test_guessed_until_chosen(self, language):
        """Telegram's is taken, its own dialects included; the unknown, and none, are English."""
        for code, hello in [
            ("de-AT", "Hallo"),
            ("fr", "Bonjour"),
            ("xx", "Hello"),
            (None, "Hello"),
        ]:
            user = {"id": 1, "language_code": code} if code else 1
            assert Chat(language.bot, user=user).send("hi")[0].startswith(hello)

    def test_chosen_for_all_chats(self, language):
        user = {"id": 1, "language_code": "fr"}
        chat, group = Chat(language.bot, user=user), Chat(language.bot, user=user, chat=-100)
        [asked] = chat.send("/language")
        assert asked == "Nous parlons français. Une autre langue ?"
        assert asked.buttons == ["English", "Deutsch", "Français"]
        assert chat.click("Deutsch")[1] == "Wir sprechen Deutsch. Eine andere Sprache?"
        assert group.send("hi")[0].startswith("Hallo, User 1!")
        assert group.send("hi", user=2)[0].startswith("Hello, User 2!")
        assert chat.click("English")[1] == "We speak English. Another language?"

    def test_the_same_again_edits_nothing(self, language):
        """Telegram refuses an edit that changes nothing."""
        chat = Chat(language.bot)
        chat.send("/language")
        assert [answer.method for answer in chat.click("English")] == ["answerCallbackQuery"]

    def test_double_click(self, language, monkeypatch):
        """The second click, while the first is handled, is ignored; it doesn't even wait."""
        chat, second = Chat(language.bot), []
        chat.send("/language")
        edit = language.bot.edit_message_text

        def edit_slowly(*args, **kwargs):
            thread = threading.Thread(target=lambda: second.append(chat.click("Deutsch")))
            thread.start()
            thread.join(TIMEOUT)
            return edit(*args, **kwargs)

        monkeypatch.setattr(language.bot, "edit_message_text", edit_slowly)
        assert chat.click("Deutsch")[1] == "Wir sprechen Deutsch. Eine andere Sprache?"
        assert second == [[]]
