"""Forms: what a user does, in whatever order, and what a bot's author gets wrong."""

import collections
import datetime
import threading
from types import SimpleNamespace

import pytest
import requests
import telebot

from telesession import MemoryStore, SessionDataError, SessionUnavailable, keys, with_session
from telesession.forms import Form, Goto, Invalid
from telesession.testing import Chat
from tests.helpers import Failure, run_together, says
from tests.stores import TIMEOUT, Bot, Clock

pytestmark = pytest.mark.thorough

HELP = "Please answer, or go /back, or /cancel."
FORGOTTEN = ["Forgotten. /start begins again."]
OVER = "That question is not open for you."
PHOTO = {"photo": [{"file_id": "p", "file_unique_id": "p", "width": 1, "height": 1}]}
CONTACT = {"contact": {"phone_number": "+47 1", "first_name": "Ada"}}


def survey(store=None, bot=None, slow=lambda text: None, **options):
    """A bot with a form of all kinds of questions, and a catch-all; what was done is in `done`."""
    bot = bot or telebot.TeleBot("1:test")
    form = Form(
        bot, "survey", command="start", store=MemoryStore() if store is None else store, **options
    )
    found = SimpleNamespace(bot=bot, form=form, done=[], also=lambda update: None)

    @form.question("Name?")
    def name(text):
        slow(text)
        return text

    @form.question("Age?")
    def age(text):
        if not text.isdecimal():
            raise Invalid("A number, please.")
        return int(text)

    @form.question("School, {name}?", when=lambda answers: answers["age"] < 18)
    def school(text):
        return text

    @form.question("City?", buttons=["Oslo", "Rome"])
    def city(text):
        return text

    @form.question("{name}, {age}, {city}, {school}. Right?", buttons=["yes", "no"])
    def right(text):
        if text != "yes":
            raise Goto("name")

    @form.done
    def done(update, name, age, city, school):
        found.done.append((name, age, city, school))
        found.also(update)

    @bot.message_handler(func=lambda message: True, content_types=["text", "photo"])
    def other(message):
        bot.send_message(message.chat.id, "other")

    found.name, found.age = name, age
    return found


@pytest.fixture
def bot():
    return telebot.TeleBot("1:test")


@pytest.fixture
def form(bot):
    """A form without questions yet."""
    return Form(bot, "small", command="start", store=MemoryStore())


def talk(chat, *texts):
    """Send one text after the other; what is answered to the last."""
    for text in texts:
        answers = chat.send(text)
    return answers


def clicked(answers):
    """What a click showed, and what was sent after it."""
    first, *others = answers
    assert first.method == "answerCallbackQuery"
    return first.params.get("text"), others


def content(found, key="1:1"):
    return found.form.session.peek(key=key)


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


def naming(name, function):
    """A function of that name."""

    def take(text):
        return function(text)

    take.__name__ = name
    return take


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


class TestRaces:
    """9.3"""

    @pytest.mark.parametrize("workers", [2, 8])
    @pytest.mark.parametrize("where", ["memory", "sqlite"])
    def test_two_quick_messages(self, workers, where, request):
        """9.3 They answer two questions, for 100 of 100 users, on a bot's own worker threads."""
        if where == "sqlite":
            from telesession.sql import SQLStore

            store = SQLStore(request.getfixturevalue("sqlite"))
        else:
            store = MemoryStore()
        bot = Bot(workers)
        found = survey(store, bot._bot)
        updates = []
        for user in range(1, 101):
            chat = Chat(found.bot, user=user)
            chat.send("/start")
            updates += [
                {"message_id": 10**6 + 2 * user + n, "date": 1, "chat": chat.chat}
                | {"from": chat.user, "text": text}
                for n, text in enumerate(["20", "30"])
            ]
        bot.run(updates)
        assert bot.errors == []
        seen = collections.Counter()
        for user in range(1, 101):
            open = content(found, f"{user}:{user}")
            answers = {str(open["answers"][name]) for name in ("name", "age")}
            seen[open["path"][-1], frozenset(answers)] += 1
        assert seen == {("city", frozenset({"20", "30"})): 100}

    def test_the_second_waits_for_the_first(self):
        """9.3 Also where taking the first answer takes long."""
        inside, second = threading.Event(), []

        def slow(text):
            inside.set()
            thread.join(0.05)
            assert thread.is_alive()

        found = survey(slow=slow)
        chat = Chat(found.bot)
        thread = threading.Thread(
            target=lambda: (inside.wait(TIMEOUT), second.extend(chat.send("36"))), daemon=True
        )
        chat.send("/start")
        thread.start()
        assert chat.send("Ada") == ["Age?"]
        thread.join(TIMEOUT)
        assert second == ["City?"]

    def test_a_double_click(self, quick_switches):
        """9.3 One of the two counts; the other one is told."""
        found = survey()
        for user in range(1, 21):
            chat = Chat(found.bot, user=user)
            talk(chat, "/start", "Ada", "36")
            both = [clicked(one) for one in run_together(*[lambda: chat.click("Rome")] * 2)]  # noqa: B023
            assert sorted(both, key=str) == [
                (OVER, []),
                (None, ["Ada, 36, Rome, . Right?"]),
            ]

    def test_a_stale_click(self):
        """9.3 The button of a question that is over, or was asked again, counts no more."""
        found = survey()
        chat = Chat(found.bot)
        [asked] = talk(chat, "/start", "Ada", "36")
        again = talk(chat, "/help")[1]
        assert clicked(click(chat, asked, "form:survey:0")) == (OVER, [])
        assert clicked(click(chat, again, "form:survey:0"))[0] is None
        assert clicked(click(chat, again, "form:survey:0")) == (OVER, [])
        talk(chat, "/cancel")
        assert clicked(click(chat, again, "form:survey:0")) == (OVER, [])

    def test_a_click_that_no_button_has(self):
        """9.3 Clients can send any data; the question is asked again."""
        chat = Chat(survey().bot)
        [asked] = talk(chat, "/start", "Ada", "36")
        assert clicked(click(chat, asked, "form:survey:7")) == (None, ["City?"])

    def test_the_click_of_another_member(self):
        """9.3 It counts for the one who was asked only."""
        found = survey()
        group = Chat(found.bot, chat=-100)
        for text in ("/start", "Ada", "36"):
            group.send(text)
            group.send(text, user=2)
        [_, asked] = group.send("/help", user=1)
        assert clicked(click(group, asked, "form:survey:0", user=3)) == (OVER, [])
        assert clicked(click(group, asked, "form:survey:0", user=2)) == (OVER, [])
        assert clicked(click(group, asked, "form:survey:0"))[1] == ["Ada, 36, Oslo, . Right?"]

    def test_a_click_that_is_too_old_to_be_answered(self, monkeypatch):
        """9.3 As after a bot was down: it counts all the same."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada", "36")

        def refuse(*args):
            result = {"error_code": 400, "description": "Bad Request: query is too old"}
            raise telebot.apihelper.ApiTelegramException("answerCallbackQuery", None, result)

        monkeypatch.setattr(found.bot, "answer_callback_query", refuse)
        assert chat.click("Rome") == ["Ada, 36, Rome, . Right?"]

    def test_a_message_that_telegram_sends_again(self):
        """9.3, 9.5 It doesn't know whether a bot that died had handled it: it counts once."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start")
        message = {"message_id": 900, "date": 1, "chat": chat.chat, "from": chat.user}
        assert chat.update(message={**message, "text": "7"}) == ["Age?"]
        assert chat.update(message={**message, "text": "7"}) == []
        assert talk(chat, "36") == ["City?"]

    def test_buttons_of_the_bot_itself(self):
        """9.3 Their data is left alone, also where it begins like the form's."""
        found = survey()
        seen = []
        found.bot.callback_query_handler(func=lambda call: True)(
            lambda call: seen.append(call.data)
        )
        chat = Chat(found.bot)
        [asked] = talk(chat, "/start", "Ada", "36")
        for data in ("survey:0", "form:survey", "form:survey2:0", "form:survey:a:0"):
            click(chat, asked, data)
        assert seen == ["survey:0", "form:survey", "form:survey2:0", "form:survey:a:0"]


def replied(answer):
    """Whether it is a reply, in the words of this version of pyTelegramBotAPI."""
    return {"reply_parameters", "reply_to_message_id"} & answer.params.keys()


def click(chat, answer, data, user=None):
    """Click on a message that may not be the newest."""
    who = chat.user if user is None else {"id": user, "is_bot": False, "first_name": "X"}
    query = {"id": "1", "from": who, "message": answer.result, "chat_instance": "1"}
    return chat.update(callback_query={**query, "data": data})


class TestWords:
    """9.4"""

    @pytest.mark.parametrize(
        "answered", [[], ["Ada"], ["Ada", "17"], ["Ada", "17", "Hill"]], ids=len
    )
    def test_at_every_question(self, answered):
        """9.4 Back, help and cancel; nothing of them is taken for an answer."""
        asked = ["Name?", "Age?", "School, Ada?", "City?"]
        at = len(answered)
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", *answered)
        assert talk(chat, "/help") == [HELP, asked[at]]
        assert talk(chat, "/back") == [asked[max(at - 1, 0)]]
        assert talk(chat, "/start", *answered) == [asked[at]]
        assert talk(chat, "/cancel") == FORGOTTEN
        assert content(found) is None
        assert talk(chat, "/cancel") == talk(chat, "/back") == talk(chat, "/help") == ["other"]

    def test_back_and_back_and_on(self):
        """9.4 Answers are given anew; where they change what is asked, it is asked."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada", "36", "Rome")
        assert talk(chat, "/back") == ["City?"]
        assert talk(chat, "/back") == ["Age?"]
        assert talk(chat, "12") == ["School, Ada?"]
        assert talk(chat, "Hill", "Oslo", "yes") == []
        assert found.done == [("Ada", 12, "Oslo", "Hill")]

    def test_other_commands(self):
        """9.4 They are the bot's, and leave the form open; so are commands for other bots."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada")
        for text in ("/score", "/score 5", "/cancel@other_bot", "/start@other_bot"):
            assert talk(chat, text) == ["other"]
        assert talk(chat, "36") == ["City?"]

    def test_commands_with_the_name_of_the_bot(self):
        """9.4 As they are written in groups, in whatever case."""
        group = Chat(survey().bot, chat=-100)
        assert talk(group, "/start@test_bot") == ["Name?"]
        assert talk(group, "Ada") == ["Age?"]
        assert talk(group, "/back@Test_Bot") == ["Name?"]
        assert talk(group, "/cancel@TEST_BOT now") == FORGOTTEN

    def test_an_answer_with_a_slash(self):
        """9.4 Not all that begins like a command is one."""
        chat = Chat(survey().bot)
        talk(chat, "/start")
        assert talk(chat, "/etc/passwd") == ["Age?"]

    def test_words_of_ones_own(self):
        """9.4 Commands, other texts, several; and what the form says."""
        found = survey(
            back="/zurueck",
            cancel=["/ende", "Lieber nicht"],
            texts={"cancelled": "Vergessen, {name}.", "help": lambda answers: "Hilfe!"},
        )
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada")
        assert talk(chat, "/help") == ["Hilfe!", "Age?"]
        assert talk(chat, "/back") == ["other"]
        assert talk(chat, "/zurueck") == ["Name?"]
        assert talk(chat, "Ada", "lieber nicht") == ["Vergessen, Ada."]
        talk(chat, "/start")
        assert talk(chat, "/ende") == ["Vergessen, ."]

    def test_the_words_are_named(self, bot):
        """9.4 What helps names the words that there are."""
        survey(bot=bot, back="/go_back", cancel=["Stop", "/stop"])
        chat = Chat(bot)
        talk(chat, "/start")
        assert talk(chat, "/help")[0] == "Please answer, or go /go_back, or Stop."

    def test_a_button_that_is_such_a_word(self, bot):
        """9.4 Typed, it is the word; clicked, the answer."""
        got = []
        form = Form(bot, "small", command="start", store=MemoryStore(), cancel="cancel")
        form.question("Sure?", buttons=["ok", "Cancel"])(naming("sure", got.append))
        form.done(lambda update: None)
        chat = Chat(bot)
        talk(chat, "/start")
        assert talk(chat, "Cancel") == FORGOTTEN
        talk(chat, "/start")
        chat.click("Cancel")
        assert got == ["Cancel"]

    def test_a_start_in_the_middle(self):
        """9.4 The form begins anew; what was answered is gone."""
        found = survey()
        chat = Chat(found.bot)
        talk(chat, "/start", "Ada", "36")
        assert talk(chat, "/start") == ["Name?"]
        assert content(found)["answers"] == {}
        assert talk(chat, "Bob", "40", "Oslo", "yes") == []
        assert found.done == [("Bob", 40, "Oslo", None)]

    def test_a_start_that_is_not_the_forms(self, bot):
        """9.4 A form with another command, or none, leaves /start to the bot."""
        form = Form(bot, "small", store=MemoryStore())
        form.question("Name?")(naming("name", str))
        form.done(lambda update: None)
        bot.message_handler(commands=["start"])(form.begin)
        bot.message_handler(commands=["hello"])(lambda message: bot.send_message(1, "Hello"))
        chat = Chat(bot)
        assert talk(chat, "/start") == ["Name?"]
        assert talk(chat, "/hello") == ["Hello"]
        assert talk(chat, "/cancel") == ["Forgotten."]


class TestSeveral:
    """Two forms, two members, two bots."""

    @pytest.fixture
    def found(self, bot):
        """A survey, and a form to order with."""
        store = MemoryStore()
        found = survey(store, bot, ttl=100)
        order = Form(bot, "order", command="order", store=store)
        order.question("What?", buttons=["tea", "pie"])(naming("what", str))
        order.question("How many?")(naming("many", int))

        @order.done
        def done(update, what, many):
            order.say(update, f"{many} {what}")

        bot.message_handlers.append(bot.message_handlers.pop(-2))  # the catch-all is last
        return found

    def test_a_form_in_the_middle_of_another(self, found):
        """9.4 What is begun takes the place of what was open, and has all answers."""
        chat = Chat(found.bot)
        [_, _, asked] = [*talk(chat, "/start"), *talk(chat, "Ada"), *talk(chat, "36")]
        assert talk(chat, "/order") == ["What?"]
        assert clicked(click(chat, asked, "form:survey:0")) == (OVER, [])
        assert talk(chat, "tea") == ["How many?"]
        assert talk(chat, "/back") == ["What?"]
        assert talk(chat, "pie", "3") == ["3 pie"]
        assert talk(chat, "36") == ["other"]
        assert talk(chat, "/order", "/start", "Bob") == ["Age?"]
        assert talk(chat, "/cancel") == FORGOTTEN
        assert found.done == []

    def test_a_form_that_begins_another(self, found):
        """9.2 When it is done; and only if it is."""
        chat = Chat(found.bot)
        order = Form(found.bot, "more", store=found.form.session.store)
        order.question("More?")(naming("more", str))
        order.done(lambda update, more: order.say(update, more))

        def begin(update):
            order.begin(update)
            if len(found.done) == 1:
                raise Failure

        found.also = begin
        talk(chat, "/start", "Ada", "36", "Rome")
        with pytest.raises(Failure):
            talk(chat, "yes")
        assert content(found)["form"] == "survey"
        assert talk(chat, "yes") == ["More?"]
        found.bot.message_handlers.append(found.bot.message_handlers.pop(-2))
        assert talk(chat, "tea") == ["tea"]
        assert content(found) is None

    def test_members_of_a_group(self):
        """9.6 Each has a form of their own, and is asked in reply."""
        group = Chat(survey().bot, chat=-100)
        assert group.send("/start") == group.send("/start", user=2) == ["Name?"]
        [asked] = group.send("Ada")
        assert asked == "Age?"
        assert replied(asked)
        assert asked.params["reply_markup"] == {"force_reply": True, "selective": True}
        assert group.send("Bob", user=2) == ["Age?"]
        assert group.send("hi", user=3) == ["other"]
        assert group.send("7", user=2) == ["School, Bob?"]
        assert group.send("36") == ["City?"]

    def test_a_click_in_a_group_leads_to_a_reply(self):
        """9.6 To the message to which the question was one: it goes to the one who is asked."""
        group = Chat(survey().bot, chat=-100)
        talk(group, "/start", "Ada", "36")
        [_, asked] = group.click("Rome")
        assert replied(asked)

    def test_a_form_for_the_whole_group(self):
        """9.6 By its key."""
        found = survey(key=keys.chat)
        group = Chat(found.bot, chat=-100)
        group.send("/start")
        assert group.send("Ada", user=2) == ["Age?"]
        assert group.send("36", user=3) == ["City?"]
        assert clicked(group.click("Rome", user=4))[1] == ["Ada, 36, Rome, . Right?"]

    def test_chats_and_topics(self):
        """9.4 What is written in other ones is no answer."""
        found = survey()
        forum = Chat(
            found.bot, chat={"id": -100, "type": "supergroup", "is_forum": True, "title": "F"}
        )
        topic = {"message_thread_id": 3, "is_topic_message": True}
        [asked] = forum.send("/start", **topic)
        assert int(asked.params["message_thread_id"]) == 3
        assert forum.send("hi") == ["other"]
        assert forum.send("hi", message_thread_id=4, is_topic_message=True) == ["other"]
        assert Chat(found.bot).send("hi") == ["other"]
        assert forum.send("Ada", **topic) == ["Age?"]

    def test_no_key(self):
        """9.6 Where the key function gives none there is no form."""
        found = survey(key=lambda update: keys.user(update) if keys.chat(update) == 1 else None)
        group = Chat(found.bot, chat=-100)
        assert group.send("/start") == ["other"]
        assert group.send("hi") == ["other"]
        assert Chat(found.bot).send("/start") == ["Name?"]
        message = telebot.types.Message.de_json(
            {"message_id": 1, "date": 1, "chat": group.chat, "from": group.user}
        )
        with pytest.raises(SessionUnavailable):
            found.form.begin(message)

    def test_two_bots(self):
        """On one store, such as the default one: users and forms of the same names don't mix."""
        store = MemoryStore()
        one, two = survey(store), survey(store, telebot.TeleBot("2:test"))
        talk(Chat(one.bot), "/start", "Ada")
        assert talk(Chat(two.bot), "hi") == ["other"]
        assert talk(Chat(two.bot), "/start") == ["Name?"]
        assert talk(Chat(one.bot), "36") == ["City?"]


class TestBeginning:
    def test_from_a_button(self):
        """9.4 `begin` takes a click, also in a group, where only the call knows the user."""
        found = survey()

        @found.bot.callback_query_handler(func=lambda call: call.data == "go")
        def go(call):
            found.form.begin(call)

        @found.bot.message_handler(commands=["menu"])
        def menu(message):
            button = telebot.util.quick_markup({"Go": {"callback_data": "go"}})
            found.bot.send_message(message.chat.id, "Menu", reply_markup=button)

        found.bot.message_handlers.insert(0, found.bot.message_handlers.pop())
        group = Chat(found.bot, chat=-100)
        group.send("/menu")
        assert group.click("Go", user=2) == ["Name?"]
        assert group.send("Ada", user=1) == ["other"]
        assert group.send("Bob", user=2) == ["Age?"]

    def test_in_a_handler_that_fails(self):
        """9.2 What it begins is begun with what the handler saves, or not at all."""
        found = survey()
        profile = with_session(property="profile", store=MemoryStore())

        @profile
        def offer(message):
            message.profile["offered"] = True
            found.form.begin(message)
            raise Failure

        found.bot.message_handler(commands=["offer"])(offer)
        found.bot.message_handlers.insert(0, found.bot.message_handlers.pop())
        chat = Chat(found.bot)
        with pytest.raises(Failure):
            chat.send("/offer")
        assert (profile.peek(key="1:1"), content(found)) == (None, None)

    def test_nothing_to_ask(self, bot, form):
        """9.7 A form none of whose questions applies is done at once."""
        done = []
        form.question("Name?", when=lambda answers: False)(naming("name", str))
        form.done(lambda update, name: done.append(name))
        assert talk(Chat(bot), "/start") == []
        assert done == [None]


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
