"""`telesession.testing`: handlers run as under Telegram, and leave the bot as it was."""

import json
import sys
import threading

import pytest
import telebot
from telebot import apihelper, types
from telebot.handler_backends import BaseMiddleware, CancelUpdate

from telesession import with_session
from telesession.testing import Chat
from tests import testing_bots
from tests.testing_bots import echo

pytestmark = pytest.mark.thorough

no_network = testing_bots.no_network
hook = testing_bots.hook
make_bot = testing_bots.make_bot
bot = testing_bots.bot
shop = testing_bots.shop

TIMEOUT = 10


@pytest.fixture
def threaded(make_bot):
    return make_bot(threaded=True)


def in_threads(*functions):
    """Run them at once; give what they returned, in their order."""
    results = [None] * len(functions)

    def run(number, function):
        results[number] = function()

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    return results


# --- several at once ---


def unsafe(bot):
    """Count in a dict, and tell Telegram in between."""
    counts = {}

    @bot.message_handler(func=lambda message: True)
    def handler(message):
        n = counts.get(message.chat.id, 0)
        bot.send_chat_action(message.chat.id, "typing")
        counts[message.chat.id] = n + 1
        bot.send_message(message.chat.id, n + 1)

    return counts


def test_a_race_is_seen(bot):
    """Handlers that nothing keeps apart meet where they call Telegram, every time."""
    counts = unsafe(bot)

    for number in range(1, 6):
        answers = Chat(bot).together("a", "b")
        assert [each[-1] for each in answers] == [str(number)] * 2
    assert counts == {1: 5}


def test_a_session_has_no_race(bot):
    session = with_session(store={})

    @bot.message_handler(func=lambda message: True)
    @session
    def handler(message):
        n = message.session.get("n", 0)
        bot.send_chat_action(message.chat.id, "typing")
        message.session["n"] = n + 1
        bot.send_message(message.chat.id, n + 1)

    answers = Chat(bot).together("a", "b", "c")

    assert sorted(each[-1] for each in answers) == ["1", "2", "3"]
    assert session.peek(key="1:1") == {"n": 3}


def test_whatever_a_user_does_can_be_done_together(shop):
    ann, bob = Chat(shop), Chat(shop, user=2)
    ann.send("hi")
    bob.send("hi")

    clicks = ann.together(lambda: ann.click("Yes"), lambda: bob.click("No"), "hi")

    assert clicks == [["1 y", "sure?"], ["2 n", ""], ["buy?"]]


def test_what_is_raised_together_is_raised_when_all_have_ended(bot):
    counts = unsafe(bot)
    chat = Chat(bot)
    before = sys.getswitchinterval()

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        chat.together(fail, "a")

    assert counts == {1: 1}
    assert sys.getswitchinterval() == before
    assert chat.send("b")[-1] == "2"


# --- threads ---


def test_handlers_run_in_the_callers_thread_and_the_pool_is_given_back(threaded):
    idents = []
    threaded.message_handler(func=lambda m: True)(lambda m: idents.append(threading.get_ident()))
    chat = Chat(threaded)

    chat.send("hi")

    assert idents == [threading.get_ident()]
    assert threaded.threaded
    done = threading.Event()
    threaded.message_handlers.clear()
    threaded.message_handler(func=lambda m: True)(
        lambda m: (idents.append(threading.get_ident()), done.set())
    )
    message = {"message_id": 1, "date": 0, "chat": chat.chat, "text": "from elsewhere"}
    threaded.process_new_messages([types.Message.de_json(message)])
    assert done.wait(TIMEOUT)
    assert idents[1] != idents[0]


def test_chats_of_one_bot_run_in_parallel_each_with_its_own_answers(threaded):
    together = threading.Barrier(4, timeout=TIMEOUT)

    @threaded.message_handler(func=lambda m: True)
    def handler(message):
        for turn in range(20):
            together.wait()  # breaks if handlers take turns
            threaded.send_message(message.chat.id, f"{message.text} {turn}")

    chats = [Chat(threaded, user=user) for user in (1, 2, 3, 4)]

    results = in_threads(*(lambda chat=chat: chat.send(str(chat.user["id"])) for chat in chats))

    assert results == [[f"{user} {turn}" for turn in range(20)] for user in (1, 2, 3, 4)]
    assert (threaded.threaded, threaded.exception_handler) == (True, None)


def test_a_bot_stays_set_up_until_the_last_overlapping_update_is_done(threaded):
    first_in, second_done = threading.Event(), threading.Event()

    @threaded.message_handler(regexp="first")
    def first(message):
        first_in.set()
        assert second_done.wait(TIMEOUT)
        # Dispatched by the bot in the midst of the first update, after the second one ended.
        threaded.process_new_messages([types.Message.de_json(message.json | {"text": "inner"})])

    idents = []
    threaded.message_handler(regexp="inner")(lambda m: idents.append(threading.get_ident()))

    def second():
        assert first_in.wait(TIMEOUT)
        Chat(threaded, user=2).send("second")
        second_done.set()

    def send_first():
        Chat(threaded).send("first")
        return [threading.get_ident()]

    assert in_threads(send_first, second)[0] == idents
    assert threaded.threaded


def test_a_handler_may_use_a_chat_itself(bot):
    @bot.message_handler(regexp="outer")
    def outer(message):
        bot.send_message(message.chat.id, "before")
        inner = Chat(bot, user=2).send("inner")
        bot.send_message(message.chat.id, f"after {inner}")

    @bot.message_handler(regexp="inner")
    def inner(message):
        bot.send_message(message.chat.id, "in")

    assert Chat(bot).send("outer") == ["before", "after ['in']"]


def test_calls_from_a_thread_of_the_handler_are_pending(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        def later():
            results.append(bot.send_message(message.chat.id, f"late {message.text}"))

        thread = threading.Thread(target=later)
        thread.start()
        thread.join(TIMEOUT)
        bot.send_message(message.chat.id, "now")

    results = []
    chat, other = Chat(bot), Chat(bot, user=2)

    assert chat.send("a") == ["now"]
    assert other.send("b") == ["now"]
    assert [message.text for message in results] == ["late a", "late b"]
    assert other.pending() == ["late b"]
    assert chat.pending() == ["late a"]
    assert chat.pending() == []


# --- exceptions ---


class Handler(telebot.ExceptionHandler):
    def __init__(self, handles):
        self.handles, self.asked = handles, []

    def handle(self, exception):
        self.asked.append(exception)
        return self.handles


def failing(bot, error):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        bot.send_message(message.chat.id, "before")
        raise error

    return bot


MODES = [
    {"threaded": threaded, "use_class_middlewares": middlewares}
    for threaded in (True, False)
    for middlewares in (True, False)
]


@pytest.mark.parametrize("mode", MODES)
def test_what_a_handler_raises_reaches_the_caller(make_bot, mode):
    error = KeyError("x")
    bot = failing(make_bot(**mode), error)

    with pytest.raises(KeyError) as caught:
        Chat(bot).send("hi")

    assert caught.value is error
    assert bot.threaded == mode["threaded"]


@pytest.mark.parametrize("handles", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_bots_exception_handler_is_asked_first(make_bot, mode, handles):
    error, handler = KeyError("x"), Handler(handles)
    bot = failing(make_bot(exception_handler=handler, **mode), error)
    chat = Chat(bot)

    if handles:
        assert chat.send("hi") == ["before"]
    else:
        with pytest.raises(KeyError):
            chat.send("hi")

    assert handler.asked == [error]
    assert bot.exception_handler is handler


@pytest.mark.parametrize("handles", [True, False])
def test_what_a_typed_middleware_raises_is_treated_alike(make_bot, monkeypatch, handles):
    monkeypatch.setattr(apihelper, "ENABLE_MIDDLEWARE", True)
    error, handler = KeyError("x"), Handler(handles)
    bot = make_bot(threaded=False, exception_handler=handler)

    @bot.middleware_handler(update_types=["message"])
    def middleware(bot, message):
        raise error

    if handles:
        assert Chat(bot).send("hi") == []
    else:
        with pytest.raises(KeyError):
            Chat(bot).send("hi")
    assert handler.asked == [error]


def test_class_middlewares_run_around_the_handler(make_bot):
    class Middleware(BaseMiddleware):
        update_types = ("message",)

        def pre_process(self, message, data):
            data["name"] = "Ann"
            return CancelUpdate() if message.text == "stop" else None

        def post_process(self, message, data, exception):
            bot.send_message(message.chat.id, f"after {exception}")

    bot = make_bot(threaded=False, use_class_middlewares=True)
    bot.setup_middleware(Middleware())

    @bot.message_handler(func=lambda m: True)
    def handler(message, data):
        bot.send_message(message.chat.id, data["name"])

    assert Chat(bot).send("hi") == ["Ann", "after None"]
    assert Chat(bot).send("stop") == []


def test_an_error_leaves_the_next_update_alone(bot):
    @bot.message_handler(func=lambda m: True)
    def handler(message):
        bot.send_message(message.chat.id, str(1 / int(message.text)))

    chat = Chat(bot)

    with pytest.raises(ZeroDivisionError):
        chat.send("0")
    assert chat.send("1") == ["1.0"]


# --- the hook ---


def response(result):
    return telebot.util.CustomRequestResponse(json.dumps({"ok": True, "result": result}))


def test_calls_of_other_bots_go_to_the_hook_that_was_there(bot):
    urls = []

    def before(method, url, params=None, files=None, timeout=None, proxies=None):
        urls.append(url)
        return response({"id": 9, "is_bot": True, "first_name": "Other"})

    apihelper.CUSTOM_REQUEST_SENDER = before
    Chat(bot)

    assert telebot.TeleBot("9:other", threaded=False).get_me().first_name == "Other"
    assert bot.get_me().id == 42
    assert urls == ["https://api.telegram.org/bot9:other/getMe"]


def test_calls_of_other_bots_go_to_telegram_where_there_was_no_hook(bot, monkeypatch):
    class Session:
        def request(self, method, url, params, files, timeout, proxies):
            assert (method, url) == ("post", "https://api.telegram.org/bot9:other/sendMessage")
            assert params["text"] == "hi"
            return response({"message_id": 77, "date": 0, "chat": {"id": 1, "type": "private"}})

    monkeypatch.setattr(apihelper, "_get_req_session", Session)
    Chat(bot)

    assert telebot.TeleBot("9:other", threaded=False).send_message(1, "hi").message_id == 77


def test_a_hook_set_later_comes_first(bot):
    echo(bot)
    chat = Chat(bot)
    ours = apihelper.CUSTOM_REQUEST_SENDER

    def blocked(method, url, **request):
        if not url.endswith("/sendMessage"):
            return ours(method, url, **request)
        refusal = {"ok": False, "error_code": 403, "description": "Forbidden: bot was blocked"}
        return telebot.util.CustomRequestResponse(json.dumps(refusal), 403)

    apihelper.CUSTOM_REQUEST_SENDER = blocked

    with pytest.raises(apihelper.ApiTelegramException, match="Forbidden"):
        chat.send("hi")


def test_an_update_that_there_is_not(bot):
    """A slip in its name would else be an update that no handler is for."""
    with pytest.raises(TypeError, match=r"mesage: .* no such update"):
        Chat(bot).update(mesage={}, poll={})


def test_a_hook_taken_away_is_back_for_the_next_update(bot):
    echo(bot)
    chat = Chat(bot)
    apihelper.CUSTOM_REQUEST_SENDER = None

    assert chat.send("hi") == ["1: hi"]


def test_bots_with_one_token_are_told_apart(make_bot):
    one, two = make_bot(threaded=False), make_bot(threaded=False)
    echo(one)
    echo(two)
    chat, newer = Chat(one), Chat(two, user=2)
    one.send_message(1, "out of the blue")

    assert chat.send("a") == ["1: a"]
    assert newer.send("b") == ["2: b"]
    assert chat.pending() == []


def test_other_api_urls_are_recognised(bot, monkeypatch):
    monkeypatch.setattr(apihelper, "API_URL", "http://localhost/bot{0}/test/{1}")
    Chat(bot)

    assert bot.get_me().is_bot
