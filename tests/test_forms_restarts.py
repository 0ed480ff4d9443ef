"""9.5, 9.6 Forms: what is left of one after a failure, a restart, or a long time."""

import datetime

import pytest
import requests
import telebot

from telesession import MemoryStore
from telesession.forms import Form
from telesession.testing import Chat
from tests.form_bots import FORGOTTEN, HELP, click, clicked, content, naming, survey, talk
from tests.stores import Clock

pytestmark = pytest.mark.thorough


class TestTheNetwork:
    """A question that could not be sent, or nobody knows whether it was."""

    @pytest.fixture
    def found(self, monkeypatch):
        found = survey()
        found.broken = []
        send = found.bot.send_message

        def unreliable(chat_id, text, **options):
            if text in found.broken:
                raise requests.exceptions.ReadTimeout(text)
            return send(chat_id, text, **options)

        monkeypatch.setattr(found.bot, "send_message", unreliable)
        return found

    def test_a_question_that_failed_is_asked_again(self, found):
        """9.5 The error is raised, the answer before it kept; the next message answers neither."""
        chat = Chat(found.bot)
        talk(chat, "/start")
        found.broken = ["Age?"]
        with pytest.raises(requests.exceptions.ReadTimeout):
            talk(chat, "Ada")
        found.broken = []
        assert talk(chat, "36") == ["Age?"]
        assert talk(chat, "36") == ["City?"]
        assert content(found)["answers"]["name"] == "Ada"

    def test_after_a_click(self, found):
        """9.5 So it is where a click was the answer; the next click has it asked again."""
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada", "36")
        found.broken = ["Ada, 36, Rome, . Right?"]
        with pytest.raises(requests.exceptions.ReadTimeout):
            chat.click("Rome")
        found.broken = []
        assert clicked(chat.click("Oslo")) == (None, ["Ada, 36, Rome, . Right?"])

    def test_one_can_go_back_from_it(self, found):
        """9.4 Also where it can never be sent."""
        chat = Chat(found.bot)
        talk(chat, "/start")
        found.broken = ["Age?"]
        for text in ("Ada", "36"):
            with pytest.raises(requests.exceptions.ReadTimeout):
                talk(chat, text)
        assert talk(chat, "/back") == ["Name?"]
        assert talk(chat, "/cancel") == FORGOTTEN

    def test_the_first_question(self, found):
        """9.5"""
        chat = Chat(found.bot)
        found.broken = ["Name?"]
        with pytest.raises(requests.exceptions.ReadTimeout):
            talk(chat, "/start")
        found.broken = []
        assert talk(chat, "hi") == ["Name?"]

    def test_begun_by_a_handler(self, found):
        """9.2 The handler hears of it, and nothing has begun."""
        found.broken = ["Name?"]
        message = {"message_id": 1, "date": 1, "chat": {"id": 1, "type": "private"}}
        with pytest.raises(requests.exceptions.ReadTimeout):
            found.form.begin(telebot.types.Message.de_json(message))
        assert content(found) is None


class TestDeploys:
    """9.5"""

    def begun(self, *answers):
        """A form that somebody is in the middle of."""
        store = MemoryStore()
        talk(Chat(survey(store).bot), "/start", *answers)
        return store

    def form(self, store, *names):
        """The same form with other questions, in a new process."""
        bot, done = telebot.TeleBot("1:test"), []
        form = Form(bot, "survey", command="start", store=store)
        for name in names:
            form.question(f"{name.title()}?")(naming(name, str))
        parameters = ", ".join(names)
        source = f"lambda update, {parameters}: done.append(({parameters},))"
        form.done(eval(source, {"done": done}))
        return Chat(bot), done

    @pytest.mark.parametrize(
        "answered", [[], ["Ada"], ["Ada", "17"], ["Ada", "17", "Hill"]], ids=len
    )
    def test_a_restart(self, answered):
        """9.5 At any question: it is open still, and its buttons are."""
        store = self.begun(*answered)
        found = survey(store)
        chat = Chat(found.bot)
        for text in ["Ada", "17", "Hill"][len(answered) :]:
            talk(chat, text)
        assert talk(chat, "Rome") == ["Ada, 17, Rome, Hill. Right?"]
        talk(chat, "yes")
        assert found.done == [("Ada", 17, "Rome", "Hill")]

    def test_the_open_question_was_renamed(self):
        """9.5 It is said, the first whose answer is missing is asked, and nothing else is lost."""
        chat, done = self.form(self.begun("Ada", "36"), "name", "age", "town")
        assert talk(chat, "Rome") == ["The questions have changed meanwhile.", "Town?"]
        talk(chat, "Rome")
        assert done == [("Ada", 36, "Rome")]

    def test_an_answered_question_was_renamed(self):
        """9.5 The open one goes on, then the missing one is asked, and no other again."""
        chat, done = self.form(self.begun("Ada", "36"), "name", "years", "city", "last")
        assert talk(chat, "Rome") == ["Years?"]
        assert talk(chat, "36") == ["Last?"]
        talk(chat, "x")
        assert done == [("Ada", "36", "Rome", "x")]

    def test_the_questions_are_in_another_order(self):
        """9.5 What was not answered is asked, also after one went back."""
        chat, done = self.form(self.begun("Ada", "36"), "city", "name", "age")
        assert talk(chat, "/back") == ["Age?"]
        assert talk(chat, "37") == ["City?"]
        talk(chat, "Rome")
        assert done == [("Rome", "Ada", "37")]

    def test_the_last_question_was_removed(self):
        """9.5 Where nothing is missing, all is done."""
        chat, done = self.form(self.begun("Ada", "36", "Rome"), "name", "age", "city")
        assert talk(chat, "yes") == ["The questions have changed meanwhile."]
        assert done == [("Ada", 36, "Rome")]

    @pytest.mark.parametrize("text", ["/back", "/help", "/cancel", "/other"])
    def test_words_at_a_question_that_is_gone(self, text):
        """9.4, 9.5"""
        chat, _ = self.form(self.begun("Ada", "36"), "name", "age", "town")
        expected = {
            "/back": ["Age?"],
            "/help": [HELP, "The questions have changed meanwhile.", "Town?"],
            "/cancel": FORGOTTEN,
            "/other": [],
        }
        assert talk(chat, text) == expected[text]

    def test_a_click_on_a_question_that_is_gone(self):
        """9.5"""
        store = MemoryStore()
        before = Chat(survey(store).bot)
        [asked] = talk(before, "/start", "Ada", "36")
        chat, _ = self.form(store, "name", "age", "town")
        assert clicked(click(chat, asked, "form:survey:0"))[1] == [
            "The questions have changed meanwhile.",
            "Town?",
        ]

    def test_buttons_in_another_order(self):
        """9.3, 9.5 A click is what the user has read."""
        store = MemoryStore()
        [asked] = talk(Chat(survey(store).bot), "/start", "Ada", "36")
        bot, got = telebot.TeleBot("1:test"), []
        form = Form(bot, "survey", command="start", store=store)
        form.question("Name?")(naming("name", str))
        form.question("Age?")(naming("age", str))
        form.question("City?", buttons=["Rome", "Oslo"])(naming("city", str))
        form.done(lambda update, city: got.append(city))
        click(Chat(bot), asked, "form:survey:0")
        assert got == ["Oslo"]

    def test_what_is_stored_can_be_json(self):
        """9.5 On any store."""
        store = {}
        found = survey(store)
        talk(Chat(found.bot), "/start", "Ada", "36")
        assert talk(Chat(survey(store).bot), "Rome") == ["Ada, 36, Rome, . Right?"]


class TestExpiry:
    def test_a_form_that_nobody_finishes(self):
        """9.6 It is gone after its ttl, counted from what its user wrote last."""
        clock = Clock()
        found = survey(MemoryStore(clock=clock), ttl=datetime.timedelta(hours=1))
        chat = Chat(found.bot)
        talk(chat, "/start")
        clock.advance(3599)
        assert talk(chat, "Ada") == ["Age?"]
        clock.advance(3599)
        assert talk(chat, "old") == ["A number, please."]
        clock.advance(3601)
        assert talk(chat, "36") == ["other"]
        assert len(found.form.session.store) == 0
