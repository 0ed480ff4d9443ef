"""9.1, 9.2, 9.7, 9.8 Forms: what their questions are, and what a bot's author gets wrong."""

import datetime

import pytest
import telebot

from telesession import MemoryStore, SessionDataError, with_session
from telesession.forms import Form, Goto, Invalid
from telesession.testing import Chat
from tests import form_bots
from tests.form_bots import FORGOTTEN, HELP, clicked, content, naming, survey, talk
from tests.helpers import Failure, run_together, says

pytestmark = pytest.mark.thorough

bot = form_bots.bot
form = form_bots.form

PHOTO = {"photo": [{"file_id": "p", "file_unique_id": "p", "width": 1, "height": 1}]}
CONTACT = {"contact": {"phone_number": "+47 1", "first_name": "Ada"}}


class TestQuestions:
    """9.1"""

    def test_from_start_to_end(self):
        """9.1, 9.2 An adult is not asked for a school; nothing is stored when all is done."""
        found = survey()
        chat = Chat(found.bot)
        assert talk(chat, "/start") == ["Name?"]
        assert talk(chat, "Ada") == ["Age?"]
        assert talk(chat, "36") == ["City?"]
        assert clicked(chat.click("Rome")) == (None, ["Ada, 36, Rome, . Right?"])
        assert clicked(chat.click("yes")) == (None, [])
        assert found.done == [("Ada", 36, "Rome", None)]
        assert content(found) is None
        assert talk(chat, "hi") == ["other"]

    def test_invalid(self):
        """9.1 Why is said, once for each answer, and the question stays open."""
        chat = Chat(survey().bot)
        talk(chat, "/start", "Ada")
        for _ in range(3):
            assert talk(chat, "old") == ["A number, please."]
        assert talk(chat, "36") == ["City?"]

    def test_goto_an_earlier_question(self):
        """9.1 The answers from there on are given anew."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada", "17", "Hill", "Oslo")
        assert clicked(chat.click("no")) == (None, ["Name?"])
        assert talk(chat, "Bob") == ["Age?"]
        assert talk(chat, "18") == ["City?"]
        assert talk(chat, "Oslo", "yes") == []
        assert found.done == [("Bob", 18, "Oslo", None)]

    def test_goto_a_later_question(self, bot, form):
        """9.1 Those between are not asked; back from there is the one that went there."""
        done = []

        @form.question("Pet?", buttons=["yes", "no"])
        def pet(text):
            if text == "no":
                raise Goto("color")
            return text

        @form.question("Its name?")
        def called(text):
            return text

        @form.question("Colour?")
        def color(text):
            return text

        form.done(lambda update, pet, called, color: done.append((pet, called, color)))
        chat = Chat(bot)
        assert talk(chat, "/start", "no") == ["Colour?"]
        assert talk(chat, "/back") == ["Pet?"]
        assert talk(chat, "yes") == ["Its name?"]
        assert talk(chat, "/back", "no") == ["Colour?"]
        talk(chat, "red")
        assert done == [(None, None, "red")]

    def test_goto_round_and_round(self, bot, form):
        """9.1 Two questions that hand on to each other ask by turns; the user can always end it."""

        @form.question("A?")
        def first(text):
            raise Goto("second")

        @form.question("B?")
        def second(text):
            raise Goto("first")

        form.done(lambda update: None)
        chat = Chat(bot)
        assert [talk(chat, text) for text in ("/start", "1", "2", "3")] == [
            ["A?"],
            ["B?"],
            ["A?"],
            ["B?"],
        ]
        assert talk(chat, "/cancel") == FORGOTTEN

    def test_a_question_is_a_plain_function(self):
        """9.1 It is called, and tested, without any form."""
        found = survey()
        assert (found.name("Ada"), found.age("36")) == ("Ada", 36)
        with pytest.raises(Invalid, match="A number"):
            found.age("old")

    def test_other_kinds_of_content(self, bot, form):
        """9.1 For a photo, a contact, the function has the message; other kinds are no answer."""
        done = []

        @form.question("Photo?", content_types=["photo"], buttons=["skip"])
        def photo(answer):
            return None if answer == "skip" else answer.photo[-1].file_id

        @form.question("Number?", content_types=["contact", "text"])
        def number(answer):
            return answer if isinstance(answer, str) else answer.contact.phone_number

        form.done(lambda update, photo, number: done.append((photo, number)))
        chat = Chat(bot)
        assert talk(chat, "/start") == ["Photo?"]
        assert talk(chat, "no") == [HELP, "Photo?"]
        assert chat.send(**CONTACT) == [HELP, "Photo?"]
        assert chat.send(**PHOTO) == ["Number?"]
        assert chat.send(**PHOTO) == [HELP, "Number?"]
        chat.send(**CONTACT)
        assert talk(chat, "/start", "Skip") == ["Number?"]
        talk(chat, "112")
        assert done == [("p", "+47 1"), (None, "112")]

    def test_an_album_is_one_answer(self, bot, form):
        """9.1 Its first message; the others are neither answers to what follows nor refused."""
        taken = []
        form.question("Photo?", content_types=["photo"])(naming("photo", taken.append))
        form.question("Another?", content_types=["photo"])(naming("another", taken.append))
        form.done(lambda update: None)
        bot.message_handler(content_types=["photo"])(lambda m: bot.send_message(1, "other"))
        chat = Chat(bot)
        talk(chat, "/start")
        album = [chat.send(**PHOTO, media_group_id="9") for _ in range(3)]
        assert album == [["Another?"], [], []]
        assert [chat.send(**PHOTO, media_group_id="10") for _ in range(3)] == [[], [], []]
        assert len(taken) == 2
        assert chat.send(**PHOTO) == ["other"]

    def test_service_messages_go_on(self):
        """9.1 What is pinned, or who came, is no answer, unless a question names it."""
        found = survey()
        seen = []
        found.bot.message_handler(content_types=["new_chat_title"])(seen.append)
        chat = Chat(found.bot, chat=-100)
        talk(chat, "/start")
        assert chat.send(new_chat_title="New") == []
        assert len(seen) == 1

    def test_edited_messages(self):
        """9.1 What is edited counts as it was."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada")
        assert chat.edit("Bob") == []
        assert talk(chat, "36", "Rome") == ["Ada, 36, Rome, . Right?"]

    def test_only_the_buttons(self, bot, form):
        """9.1 Where there are some, a text counts if it is on one, in whatever case."""
        got = []
        form.question("Right?", buttons=["Yes", "No"])(naming("right", got.append))
        form.done(lambda update: None)
        chat = Chat(bot)
        talk(chat, "/start")
        assert talk(chat, "perhaps") == [HELP, "Right?"]
        assert talk(chat, " yes ") == []
        assert got == ["Yes"]

    def test_buttons_that_suggest(self, bot, form):
        """9.1 Any text counts where texts are named."""
        got = []
        form.question("City?", buttons=["Oslo"], content_types=["text"])(naming("city", got.append))
        form.done(lambda update: None)
        talk(Chat(bot), "/start", "Rome", "/start", "oslo")
        assert got == ["Rome", "Oslo"]

    def test_what_the_store_cannot_keep(self, bot):
        """9.1 It is told, with its place; the question stays open."""
        form = Form(bot, "small", command="start", store={})

        @form.question("When?")
        def day(text):
            return datetime.date(2026, 1, int(text)) if text != "3" else "2026-01-03"

        @form.question("Where?")
        def where(text):
            return text

        form.done(lambda update, day: None)
        chat = Chat(bot)
        talk(chat, "/start")
        with says(SessionDataError, "['answers']['day']", "date"):
            talk(chat, "2")
        assert talk(chat, "3") == ["Where?"]

    def test_a_store_that_keeps_more(self, bot, form):
        """9.1 In memory any value will do that pickle keeps."""
        got = []
        form.question("When?")(naming("day", lambda text: datetime.date(2026, 1, 1)))
        form.question("Where?")(naming("where", str))
        form.done(lambda update, day: got.append(day))
        talk(Chat(bot), "/start", "now", "here")
        assert got == [datetime.date(2026, 1, 1)]


class TestDone:
    """9.2"""

    def test_failing(self):
        """9.2 The form stays at its last question, and what was stacked is as it was."""
        store = MemoryStore()
        profile = with_session(property="profile", store=store)
        found = survey(store, also=[profile])
        chat = Chat(found.bot)

        def fail(update):
            update.profile["n"] = len(found.done)
            if len(found.done) == 1:
                raise Failure

        found.also = fail
        talk(chat, "/start", "Ada", "36", "Rome")
        with pytest.raises(Failure):
            chat.click("yes")
        assert profile.peek(key="1:1") is None
        assert clicked(chat.click("yes")) == (None, [])
        assert profile.peek(key="1:1") == {"n": 2}
        assert found.done == [("Ada", 36, "Rome", None)] * 2

    def test_the_save_failing(self):
        """9.2 What `done` leaves where it can't be kept fails it as an error in it would."""
        profile = with_session(property="profile", store={})
        found = survey(also=[profile])
        chat = Chat(found.bot)
        found.also = lambda update: update.profile.update(n=len(found.done) == 1 and object())
        talk(chat, "/start", "Ada", "36", "Rome")
        with pytest.raises(SessionDataError):
            talk(chat, "yes")
        assert talk(chat, "yes") == []
        assert len(found.done) == 2

    @pytest.mark.parametrize("error", [Invalid("No."), Goto("name")])
    def test_not_accepting(self, error):
        """9.2 It may raise what questions may; what it did before is taken back."""
        profile = with_session(property="profile", store=MemoryStore())
        found = survey(also=[profile])
        chat = Chat(found.bot)

        def refuse(update):
            update.profile["n"] = 1
            if len(found.done) == 1:
                raise error

        found.also = refuse
        talk(chat, "/start", "Ada", "36", "Rome")
        answered = clicked(chat.click("yes"))[1]
        assert answered == (["No."] if isinstance(error, Invalid) else ["Name?"])
        assert profile.peek(key="1:1") is None
        if isinstance(error, Goto):
            talk(chat, "Ada", "36", "Rome")
        assert clicked(chat.click("yes")) == (None, [])
        assert profile.peek(key="1:1") == {"n": 1}

    def test_what_is_stacked_is_busy(self):
        """9.2 And not to be waited for: nothing is taken, the question stays open."""
        profile = with_session(property="profile", store=MemoryStore(), busy="drop")
        found = survey(also=[profile])
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada", "36", "Rome")
        with profile.open(key="1:1"):
            assert run_together(lambda: talk(chat, "yes")) == [[]]
        assert found.done == []
        assert talk(chat, "yes") == []
        assert len(found.done) == 1

    def test_back_after_a_refusal(self):
        """9.2 The answer that `done` did not accept is not kept."""
        found = survey()
        chat = Chat(found.bot)

        def refuse(update):
            raise Invalid("No.")

        found.also = refuse
        assert talk(chat, "/start", "Ada", "36", "Rome", "yes") == ["No."]
        assert talk(chat, "/back") == ["City?"]

    def test_questions_have_what_is_stacked(self, bot):
        """9.2 A question that gets the message has the sessions; refusing takes them back."""
        profile = with_session(property="profile", store=MemoryStore())
        form = Form(bot, "small", command="start", store=MemoryStore(), also=[profile])

        @form.question("Photo?", content_types=["photo"])
        def photo(message):
            message.profile["n"] = message.profile.get("n", 0) + 1
            if message.caption is None:
                raise Invalid("With a caption, please.")

        form.done(lambda update: None)
        chat = Chat(bot)
        talk(chat, "/start")
        assert chat.send(**PHOTO) == ["With a caption, please."]
        assert chat.send(**PHOTO, caption="I") == []
        assert profile.peek(key="1:1") == {"n": 1}

    def test_all_answers(self, bot, form):
        """9.2 Where it takes any keywords."""
        got = []
        form.question("A?")(naming("a", str))
        form.question("B?", when=lambda answers: False)(naming("b", str))
        form.done(lambda update, **answers: got.append(answers))
        talk(Chat(bot), "/start", "x")
        assert got == [{"a": "x", "b": None}]

    def test_where_it_answers(self):
        """9.2 `say` knows the place of a message and of a click, also in a topic of a group."""
        found = survey()
        found.also = lambda update: found.form.say(update, "Thanks", disable_notification=True)
        forum = {"id": -100, "type": "supergroup", "is_forum": True, "title": "Forum"}
        chat = Chat(found.bot, chat=forum)
        topic = {"message_thread_id": 3, "is_topic_message": True}
        for text in ("/start", "Ada", "36"):
            [asked] = chat.send(text, **topic)
        [_, asked] = chat.click("Rome")
        [_, thanks] = chat.click("yes")
        for answer in (asked, thanks):
            assert (answer.params["chat_id"], int(answer.params["message_thread_id"])) == (
                "-100",
                3,
            )
        assert thanks.params["disable_notification"]

    def test_a_thread_of_an_ordinary_group_is_no_topic(self):
        """Telegram refuses a message to one."""
        [asked] = Chat(survey().bot, chat=-100).send("/start", message_thread_id=3)
        assert "message_thread_id" not in asked.params


class TestNames:
    """9.2 What is misspelt is told when the module is imported; in a `Goto`, when it is raised."""

    def test_in_done(self, form):
        form.question("Name?")(naming("name", str))
        with says(TypeError, "done names", "nmae", "are name"):

            @form.done
            def done(update, nmae):
                pass

    def test_in_a_text(self, form):
        form.question("Name?")(naming("name", str))
        with says(TypeError, "text of age", "nmae", "are name"):
            form.question("Age, {nmae[0]}?")(naming("age", str))

    def test_in_options(self, form):
        with says(TypeError, "parse_mod"):
            form.question("Name?", parse_mod="HTML")

    def test_in_a_text_of_the_form(self, bot):
        form = Form(bot, "small", texts={"cancelled": "Bye, {nmae}."})
        form.question("Name?")(naming("name", str))
        with says(TypeError, "text 'cancelled'", "nmae"):
            form.done(lambda update: None)

    def test_in_goto(self, bot, form):
        """And the form stays where it is."""

        @form.question("A?")
        def first(text):
            raise Goto("frist")

        form.done(lambda update: None)
        chat = Chat(bot)
        talk(chat, "/start")
        with says(ValueError, "first raised Goto('frist')"):
            talk(chat, "x")
        assert talk(chat, "/help") == [HELP, "A?"]

    def test_a_later_question_in_a_text(self, form):
        with says(TypeError, "text of name", "age", "none"):
            form.question("Name, {age}?")(naming("name", str))


class TestMistakes:
    """What can't work is refused at import, with the cure."""

    def test_done_without_the_update(self, form):
        form.question("Name?")(naming("name", str))
        with pytest.raises(ValueError, match="expected at least 1"):
            form.done(lambda: None)

    def test_no_done(self, bot, form):
        form.question("Name?")(naming("name", str))
        with says(TypeError, "'small' has no @form.done"):
            talk(Chat(bot), "/start")

    def test_two_questions_of_one_name(self, form):
        form.question("Name?")(naming("name", str))
        with says(ValueError, "'small' has two questions 'name'"):
            form.question("Name?")(naming("name", str))

    def test_a_text_with_a_stray_brace(self, form):
        with says(TypeError, "text of name"):
            form.question("Name {?")(naming("name", str))


class TestCases:
    """9.7"""

    def test_texts_and_buttons_that_are_functions(self, bot, form):
        """9.7 Of the answers so far, for other languages and for choices that depend on others."""
        cities = {"no": ["Oslo", "Bergen"], "it": ["Roma"]}
        form.question("Language?", buttons=["no", "it"])(naming("language", str))
        form.question(
            lambda answers: {"no": "Hvor?", "it": "Dove?"}[answers["language"]],
            buttons=lambda answers: cities[answers["language"]],
        )(naming("city", str))
        form.done(lambda update: None)
        chat = Chat(bot)
        [asked] = talk(chat, "/start", "it")
        assert (asked, asked.buttons) == ("Dove?", ["Roma"])
        [asked] = talk(chat, "/back", "no")
        assert (asked, asked.buttons) == ("Hvor?", ["Oslo", "Bergen"])

    def test_answers_so_far(self, bot, form):
        """9.7 Those of the questions before, `None` for what was not asked."""
        seen = []
        form.question("A?")(naming("a", str))
        form.question("B?", when=lambda answers: seen.append(answers))(naming("b", str))
        form.question(lambda answers: seen.append(answers) or "C?")(naming("c", str))
        form.done(lambda update: None)
        talk(Chat(bot), "/start", "x")
        assert seen == [{"a": "x"}, {"a": "x", "b": None}]

    def test_how_an_answer_is_shown(self, bot, form):
        form.question("A?")(naming("price", float))
        form.question("{price:.2f}, {price.real!r}?")(naming("b", str))
        form.done(lambda update: None)
        assert talk(Chat(bot), "/start", "1.5") == ["1.50, 1.5?"]

    def test_options_for_telegram(self, bot, form):
        """9.7 Such as a keyboard that asks for the user's number."""
        keyboard = telebot.types.ReplyKeyboardMarkup(one_time_keyboard=True)
        keyboard.add(telebot.types.KeyboardButton("Mine", request_contact=True))
        form.question("Number?", content_types=["contact"], reply_markup=keyboard)(
            naming("number", lambda message: message.contact.phone_number)
        )
        form.done(lambda update: None)
        [asked] = talk(Chat(bot), "/start")
        assert asked.buttons == ["Mine"]


class TestPlace:
    """9.8"""

    @pytest.mark.parametrize("above", [True, False])
    def test_a_catch_all(self, above):
        """9.8 Below the form it is safe; above it has all texts, as for any handlers."""
        bot = telebot.TeleBot("1:test")
        if above:
            bot.message_handler(func=lambda m: True)(lambda m: bot.send_message(1, "first"))
        survey(bot=bot)
        assert talk(Chat(bot), "/start") == (["first"] if above else ["Name?"])
        assert "above the bot's catch-alls" in Form.__doc__
