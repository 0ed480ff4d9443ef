"""Every call of a bot gets a result from the harness that pyTelegramBotAPI can read."""

import inspect
import io
import typing

import pytest
import telebot
from telebot import types

from telesession.testing import Chat

pytestmark = pytest.mark.thorough

if not hasattr(types, "EphemeralMessageParameters"):
    pytest.skip("this pyTelegramBotAPI has fewer calls", allow_module_level=True)


@pytest.fixture
def bot():
    return telebot.TeleBot("1:test")


STICKER = types.InputSticker("file", ["🎲"], "static")
FILE = types.InputFile(io.BytesIO(b"..."), file_name="file")
VALUES = {
    typing.Any: "file",
    bool: True,
    int: 1,
    float: 1.0,
    str: "1",
    list: [],
    types.BotCommandScope: types.BotCommandScopeDefault(),
    types.EphemeralMessageParameters: types.EphemeralMessageParameters(1),
    types.InlineQueryResultBase: types.InlineQueryResultArticle(
        "1", "title", types.InputTextMessageContent("text")
    ),
    types.InputFile: FILE,
    types.InputMedia: types.InputMediaPhoto("file"),
    types.InputPaidMedia: types.InputPaidMediaPhoto("file"),
    types.InputProfilePhoto: types.InputProfilePhotoStatic(FILE),
    types.InputRichMessage: types.InputRichMessage(html="text"),
    types.InputStoryContent: types.InputStoryContentPhoto(FILE),
    types.LabeledPrice: types.LabeledPrice("label", 1),
    types.MaskPosition: types.MaskPosition("eyes", 1.0, 1.0, 1.0),
    types.MenuButton: types.MenuButtonDefault(),
    types.ReplyParameters: types.ReplyParameters(1),
    types.ShippingOption: types.ShippingOption("1", "title"),
    types.StoryAreaType: types.StoryAreaTypeLink("url"),
}
# Where one of several optional arguments is needed.
NEEDED = {
    "add_sticker_to_set": {"sticker": STICKER},
    "create_new_sticker_set": {"stickers": [STICKER]},
    "edit_message_text": {"text": "new", "rich_message": None},
    "send_gift": {"user_id": 1, "gift_id": "1"},
}
# Methods that call nothing, that don't ask the hook, or that fail in pyTelegramBotAPI 4.37 itself.
LEFT_OUT = {
    "add_middleware_handler",
    "download_file",
    "process_new_updates",
    "remove_my_profile_photo",
}
# Annotated otherwise than what they return in pyTelegramBotAPI 4.37.
MISDECLARED = {"answer_web_app_query", "set_chat_sticker_set"}
METHODS = [
    name
    for name, function in inspect.getmembers(telebot.TeleBot, inspect.isfunction)
    if not name.startswith("_") and "apihelper." in inspect.getsource(function)
    if name not in LEFT_OUT
]


def value(hint):
    """Some argument for a parameter with this annotation."""
    if hint in VALUES:
        return VALUES[hint]
    if typing.get_origin(hint) is list:
        return [value(item) for item in typing.get_args(hint)]
    if typing.get_args(hint):
        return value(typing.get_args(hint)[0])
    return hint(**arguments(hint.__init__))


def arguments(function, optional=False):
    hints = typing.get_type_hints(function)
    return {
        name: value(hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        # An inline message is a case of its own: there the result is True.
        if name in hints and name != "inline_message_id"
        if optional or parameter.default is parameter.empty
    }


def is_a(result, hint):
    """Whether a result is what its annotation declares."""
    if typing.get_origin(hint) is list:
        return isinstance(result, list) and all(is_a(r, *typing.get_args(hint)) for r in result)
    if typing.get_origin(hint):
        return any(is_a(result, choice) for choice in typing.get_args(hint))
    # MenuButton.de_json and others give classes next to the declared one.
    return isinstance(result, hint) or type(result).__name__.startswith(hint.__name__)


@pytest.mark.parametrize("optional", [False, True], ids=["required", "all"])
@pytest.mark.parametrize("name", METHODS)
def test_every_call_of_a_bot_gets_a_result_that_it_can_read(bot, name, optional):
    Chat(bot)
    function = getattr(bot, name)

    result = function(**{**arguments(function, optional), **NEEDED.get(name, {})})

    declared = typing.get_type_hints(function).get("return")
    assert result is not None
    assert declared is None or name in MISDECLARED or is_a(result, declared)
