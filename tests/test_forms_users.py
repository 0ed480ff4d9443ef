"""9.3, 9.4 Forms: what users do, in whatever order, together, and with several forms."""

import collections
import threading

import pytest
import telebot

from telesession import MemoryStore, SessionUnavailable, keys, with_session
from telesession.forms import Form
from telesession.testing import Chat
from tests import form_bots
from tests.form_bots import FORGOTTEN, HELP, click, clicked, content, naming, survey, talk
from tests.helpers import Failure, run_together
from tests.stores import TIMEOUT, Bot

pytestmark = pytest.mark.thorough

bot = form_bots.bot
form = form_bots.form

OVER = "That question is not open for you."


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
