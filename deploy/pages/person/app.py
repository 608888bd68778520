"""The person's page as an app: every route reads or changes the device's own files, through `tessera.Device`."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tessera.client.owner.policy import Policy, parse_policy, write_policy
from tessera.client.people.device import Device
from tessera.client.people.preferences import FARTHEST
from tessera.common.errors import ConfigError, DataError, TesseraError
from tessera.common.utils.text.wording import number_of
from tessera.deploy.pages.person.facts import BECAUSE, KINDS, VIEWS, advice, questions, timeline
from tessera.deploy.pages.person.pictures import Pictures
from tessera.deploy.pages.reading import FRAGMENT, STATIC, body, failing, templates

LARGEST_ARCHIVE = 1 << 26
"""Bytes that an archive of a person may have."""
Fields = Mapping[str, str]
Answer = Callable[[Request, Fields], Response]


class PersonPage:
    """The routes, over one device and, where its items have any, their pictures."""

    def __init__(self, device: Device, pictures: Path | None = None) -> None:
        self._device, self._pictures = device, Pictures(device.folder, pictures)
        own = templates(
            "tessera.deploy.pages.person", "Tessera on this device", main="main", subject="what is recommended"
        )
        own.globals.update(views=VIEWS, because=BECAUSE, kinds=KINDS, farthest=FARTHEST)
        self._templates = own

    def app(self) -> Starlette:
        """The app, which `tessera.deploy.pages.guard.Guard` is to stand before."""
        reading = {"/": self.home, "/search": self.search, "/picture": self.picture, "/export": self.export}
        writing = {
            "/lean": self.lean, "/learnt": self.learnt, "/hide": self.hide, "/show": self.show, "/add": self.add,
            "/correct": self.correct, "/policy": self.policy, "/forget": self.forget,
        }  # fmt: skip
        return Starlette(
            routes=[
                *(Route(path, self._reading(answer)) for path, answer in reading.items()),
                *(Route(path, self._writing(answer), methods=["POST"]) for path, answer in writing.items()),
                Route("/import", self.import_, methods=["POST"]),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            exception_handlers={TesseraError: failing(self._templates)},
        )

    def home(self, request: Request, fields: Fields) -> Response:
        """The whole page of the person that is named, or of the first."""
        people = [person.user for person in self._device.people()]
        if not people:
            return self._page("nobody.html")
        user = fields.get("user") or people[0]
        if user not in people:
            raise DataError(f"user {user!r} is not on this device")
        return self._page("page.html", user=user, people=people, said=fields.get("said", ""), **self._about(user))

    def search(self, request: Request, fields: Fields) -> Response:
        """Items that have the words in their title."""
        text = fields.get("q", "").strip()
        found = self._device.find(text, 12) if text else []
        had = {event.item for event in self._device.events(_user(fields))}
        return self._page("found.html", user=_user(fields), text=text, found=found, had=had)

    def picture(self, request: Request, fields: Fields) -> Response:
        """An item's picture, small."""
        content = self._pictures.small(fields.get("item", ""))
        return Response(content, media_type="image/jpeg") if content else Response(status_code=404)

    def export(self, request: Request, fields: Fields) -> Response:
        """The archive of a person, as a download."""
        with TemporaryDirectory(dir=self._device.folder) as folder:  # on the device: it holds all that is private
            file = Path(folder) / "person.zip"
            self._device.export(_user(fields), file)
            content = file.read_bytes()
        disposition = 'attachment; filename="tessera-person.zip"'
        return Response(content, media_type="application/zip", headers={"content-disposition": disposition})

    def lean(self, request: Request, fields: Fields) -> Response:
        """Let views count more or less: a field for each view."""
        for view in VIEWS:
            if view in fields:
                self._device.lean(_user(fields), view, _number(fields[view], view))
        return self._changed(request, fields, "The list follows your sliders.")

    def learnt(self, request: Request, fields: Fields) -> Response:
        """Take the sliders back: views count as was learnt."""
        for view in self._device.preferences(_user(fields)).leaning:
            self._device.lean(_user(fields), view, 0.0)
        return self._back(fields, "Everything counts as your device has learnt it.")

    def hide(self, request: Request, fields: Fields) -> Response:
        """Do not recommend an item again."""
        self._device.hide(_user(fields), fields.get("item", ""))
        return self._changed(request, fields, "It will not be recommended again.")

    def show(self, request: Request, fields: Fields) -> Response:
        """Recommend an item again."""
        self._device.hide(_user(fields), fields.get("item", ""), hidden=False)
        return self._back(fields, "It may be recommended again.")

    def add(self, request: Request, fields: Fields) -> Response:
        """Note that the person had an item."""
        event = self._device.add_event(_user(fields), fields.get("item", ""))
        return self._back(fields, f"Added: {event.title}.")

    def correct(self, request: Request, fields: Fields) -> Response:
        """Take an event back."""
        self._device.correct(_user(fields), fields.get("item", ""))
        return self._back(fields, "Taken back. What it added to sums of past rounds stays in those.")

    def policy(self, request: Request, fields: Fields) -> Response:
        """Write the switches into the policy; what has none stays as it is."""
        before = self._device.policy
        changes = {question.key: question.read(fields) for question in questions(before)}
        kinds = [kind for kind in Policy().answers if fields.get(f"answers.{kind}")]
        after = parse_policy(before.model_dump(mode="json") | changes | {"answers": kinds}, "policy")
        write_policy(self._device.folder, after)
        return self._back(fields, "Written. The next message of a server is answered by it.")

    def forget(self, request: Request, fields: Fields) -> Response:
        """Remove a person, whose name has been typed."""
        if fields.get("confirm") != _user(fields):
            raise DataError("Nothing was removed: type the name as it stands there to forget this person.")
        self._device.forget(_user(fields))
        return _to("/", said="Forgotten: nothing of them is left in the device's files.")

    async def import_(self, request: Request) -> Response:
        """Take in a person from an archive, which is the request's whole body."""
        content = await body(request, LARGEST_ARCHIVE)

        def take_in() -> Response:
            with TemporaryDirectory(dir=self._device.folder) as folder:
                file = Path(folder) / "archive.zip"
                file.write_bytes(content)
                found = self._device.import_(file)
            return _to("/", user=found.user, said=f"Taken in: {found.user}, {number_of(found.events, 'event')}.")

        return await run_in_threadpool(take_in)

    def _about(self, user: str) -> dict[str, object]:
        """What the templates show of a person."""
        return {
            "advice": advice(self._device, user),
            "events": list(reversed(self._device.events(user))),
            "hidden": [item for one in self._device.preferences(user).hidden for item in self._device.find(one, 1)],
            "timeline": timeline(self._device.ledger()),
            "policy": self._device.policy,
            "questions": questions(self._device.policy),
            "encryption": self._device.encryption,
            "pictures": self._pictures.there,
        }

    def _changed(self, request: Request, fields: Fields, said: str) -> Response:
        """The new list alone where the page's script asked for it, else the page again."""
        if request.headers.get(FRAGMENT) != "list":
            return self._back(fields, said)
        user = _user(fields)
        return self._page("list.html", user=user, advice=advice(self._device, user), pictures=self._pictures.there)

    def _back(self, fields: Fields, said: str) -> Response:
        return _to("/", user=_user(fields), said=said)

    def _page(self, template: str, **facts: object) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(facts))

    def _reading(self, answer: Answer) -> Callable[[Request], object]:
        @wraps(answer)
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(answer, request, dict(request.query_params))

        return endpoint

    def _writing(self, answer: Answer) -> Callable[[Request], object]:
        @wraps(answer)
        async def endpoint(request: Request) -> Response:
            content = await body(request)
            fields = dict(parse_qsl(content.decode(errors="replace"), keep_blank_values=True))
            return await run_in_threadpool(answer, request, fields)

        return endpoint


def _user(fields: Fields) -> str:
    return fields.get("user", "")


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is no number") from None


def _to(path: str, **fields: str) -> Response:
    """Send the browser to a page, so that loading it again repeats nothing."""
    return RedirectResponse(f"{path}?{urlencode(fields)}", 303)
