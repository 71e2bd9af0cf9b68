"""Who may ask the local page what, and what it takes in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from goodnet.serve.jobs import Jobs
from goodnet.serve.routes import Limits
from goodnet.serve.uploads import MIB, display_name
from serve_support import MULTIPART, ORIGIN, PORT, Served, ask, complete, endless, multipart, served


@pytest.fixture
def here(tmp_path: Path) -> Served:
    return served(tmp_path / "jobs", Limits(model_mb=1, data_mb=1, picture_mb=1))


def sent(here: Served, *parts: tuple[str, str | None, bytes], token: str | None = None) -> bytes:
    return multipart(("csrf", None, (here.session.csrf if token is None else token).encode()), *parts)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", f"127.0.0.1.evil.example:{PORT}", ""]
)
def test_another_host_is_refused_whatever_the_browser_knows(here: Served, host: str) -> None:
    assert here.client().get("/", headers={"host": host}).status_code == 403
    assert here.client().get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/jobs/" + "0" * 32, "/static/serve.js", "/nothing", "/docs", "/openapi.json"])
def test_without_the_link_nothing_is_shown(here: Served, path: str) -> None:
    answer = here.client(known=False).get(path)
    assert answer.status_code == 403
    assert here.session.csrf not in answer.text
    assert "set-cookie" not in answer.headers


def test_the_link_is_good_for_one_browser_and_a_new_one_is_shown_when_somebody_asks(here: Served) -> None:
    here.session.new_link()
    first = here.client(known=False)
    answer = first.get(here.links[0].removeprefix(ORIGIN))
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert first.get("/").status_code == 200
    again = here.client(known=False)
    assert again.get(here.links[0].removeprefix(ORIGIN)).status_code == 403
    assert again.get("/").status_code == 403
    assert len(here.links) == 2  # one more, and not one for each question
    assert again.get(here.links[1].removeprefix(ORIGIN)).status_code == 200


@pytest.mark.parametrize("token", ["", "x", "é" * 43])
def test_a_wrong_token_or_cookie_opens_nothing(here: Served, token: str) -> None:
    here.session.new_link()
    client = here.client(known=False)
    assert client.get("/", params={"token": token}).status_code == 403
    assert client.get("/", headers={"cookie": f"{here.session.cookie}={token.encode().hex()}"}).status_code == 403
    assert client.get("/", headers={"cookie": "a=b; ;;==\x7f"}).status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", "http://127.0.0.1:1", f"http://localhost:{PORT}"]
)
def test_a_form_of_another_page_is_refused(here: Served, origin: str | None) -> None:
    job = here.job()
    answer = here.client(origin=origin).post(f"/jobs/{job.id}/delete", data={"csrf": here.session.csrf})
    assert answer.status_code == 403
    assert job.id in here.jobs


def test_a_form_that_the_browser_calls_cross_site_is_refused(here: Served) -> None:
    job, form = here.job(), {"csrf": here.session.csrf}
    client = here.client()
    for site in ("cross-site", "same-site", "none"):
        assert client.post(f"/jobs/{job.id}/delete", data=form, headers={"sec-fetch-site": site}).status_code == 403
    assert (
        client.post(f"/jobs/{job.id}/delete", data=form, headers={"sec-fetch-site": "same-origin"}).status_code == 303
    )
    assert job.id not in here.jobs


@pytest.mark.parametrize("action", ["scan", "repair", "cancel", "delete", "picture"])
@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_without_the_csrf_token_nothing_is_done(here: Served, action: str, token: str | None) -> None:
    job = here.job()
    before = files(here.jobs.folder)
    if action == "picture":
        body = multipart(*([] if token is None else [("csrf", None, token.encode())]), ("picture", "a.png", b"picture"))
        answer = here.client().post(f"/jobs/{job.id}/{action}", content=body, headers=MULTIPART)
    else:
        answer = here.client().post(f"/jobs/{job.id}/{action}", data={} if token is None else {"csrf": token})
    assert answer.status_code == 403
    assert files(here.jobs.folder) == before
    assert here.jobs[job.id].version == 0


def test_an_upload_without_the_csrf_token_writes_nothing(here: Served) -> None:
    late = multipart(("model", "net.pt", b"net"), ("clean", "c.npz", b"c"), ("csrf", None, here.session.csrf.encode()))
    for body in (late, sent(here, ("model", "net.pt", b"net"), token="wrong")):
        assert here.client().post("/jobs", content=body, headers=MULTIPART).status_code == 403
        assert files(here.jobs.folder) == []


def test_a_net_that_is_too_large_is_refused_while_it_comes_in(here: Served) -> None:
    asked: list[int] = []
    headers = {
        **MULTIPART, "host": f"127.0.0.1:{PORT}", "origin": ORIGIN,
        "cookie": f"{here.session.cookie}={here.session.secret}",
    }  # fmt: skip
    body = endless(here.session.csrf, bytes(MIB // 8), asked)
    status, text = complete(ask(here.app, "/jobs", headers, body))
    assert status == 413
    assert b"The net: expected at most 1 MB" in text
    assert MIB < sum(asked) <= MIB + MIB // 8  # the body has no end: it was left at the limit
    assert files(here.jobs.folder) == []


def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(here: Served) -> None:
    def nothing() -> object:
        pytest.fail("the body was asked for")
        yield b""

    headers = {
        **MULTIPART, "host": f"127.0.0.1:{PORT}", "origin": ORIGIN, "content-length": str(4 * MIB),
        "cookie": f"{here.session.cookie}={here.session.secret}",
    }  # fmt: skip
    assert complete(ask(here.app, "/jobs", headers, nothing()))[0] == 413  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([("model", "a.pt", b"a"), ("clean", "c.npz", b"")], 400),  # empty
        ([("model", "a.pt", b"a")], 400),  # one is missing
        ([("model", "a.pt", b"a"), ("model", "b.pt", b"b"), ("clean", "c.npz", b"c")], 400),
        ([("other", "a.pt", b"a"), ("clean", "c.npz", b"c")], 400),
        ([("arch", None, b"x" * 5000), ("model", "a.pt", b"a"), ("clean", "c.npz", b"c")], 413),
        ([(f"field{n}", None, b"x") for n in range(40)], 413),
        ([("x" * 9000, None, b"x")], 0),  # 413, or 400 where python-multipart bounds headers itself
        ([("arch", None, b"evil.py:run"), ("model", "a.pt", b"a"), ("clean", "c.npz", b"c")], 400),
        ([("mean", None, b"nan"), ("model", "a.pt", b"a"), ("clean", "c.npz", b"c")], 400),
        ([("input_shape", None, b"3,1"), ("model", "a.pt", b"a"), ("clean", "c.npz", b"c")], 400),
    ],
)
def test_forms_that_are_none_of_ours_leave_nothing(
    here: Served, parts: list[tuple[str, str | None, bytes]], status: int
) -> None:
    answer = here.client().post("/jobs", content=sent(here, *parts), headers=MULTIPART)
    assert answer.status_code in ((status,) if status else (400, 413)), answer.text
    assert files(here.jobs.folder) == []


def test_a_damaged_form_leaves_nothing(here: Served) -> None:
    whole = sent(here, ("model", "a.pt", b"a"), ("clean", "c.npz", b"c"))
    for body, kind in (
        (whole[:-40], MULTIPART),
        (b"\r\n" + whole[9:], MULTIPART),
        (whole, {"content-type": "text/plain"}),
    ):
        assert here.client().post("/jobs", content=body, headers=kind).status_code == 400
        assert files(here.jobs.folder) == []
    assert here.client().post("/jobs/" + here.job().id + "/cancel", content=b"a" * 20000).status_code == 413


def test_files_are_kept_under_names_of_ours_and_shown_escaped(here: Served) -> None:
    hostile = "../../<img src=x onerror=alert(1)>.pt"
    body = sent(here, ("model", hostile, b"weights"), ("clean", "C:\\a\\..\\clean.npz", b"images"))
    answer = here.client().post("/jobs", content=body, headers=MULTIPART)
    assert answer.status_code == 303
    name = answer.headers["location"].removeprefix("/jobs/")
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert files(here.jobs.folder) == [name, *(f"{name}/{one}" for one in ("clean", "job.json", "model", "tmp"))]
    place = here.jobs.place(name)
    assert place.folder.stat().st_mode & 0o777 == 0o700
    assert (place.model.read_bytes(), place.clean.read_bytes()) == (b"weights", b"images")
    for path in ("/", f"/jobs/{name}"):
        page = here.client().get(path).text
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;.pt" in page
    assert (here.jobs[name].clean, here.jobs[name].surrogate) == ("clean.npz", "")


def test_other_pictures_may_come_with_them(here: Served) -> None:
    body = sent(here, ("model", "net.pt", b"weights"), ("clean", "clean.npz", b"images"), ("surrogate", "lfw.h5", b"x"))
    name = here.client().post("/jobs", content=body, headers=MULTIPART).headers["location"].removeprefix("/jobs/")
    assert here.jobs.place(name).surrogate.read_bytes() == b"x"
    assert (here.jobs[name].surrogate, Jobs(here.jobs.folder)[name].surrogate) == ("lfw.h5", "lfw.h5")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/etc/passwd", "passwd"),
        ("a\\b\\net.h5", "net.h5"),
        ("..", ".."),
        ("a\u202egpj.pt", "a\ufffdgpj.pt"),
        ("x" * 300, "x" * 119 + "…"),
        ("line\nbreak\x1b[31m.pt", "line break\ufffd[31m.pt"),
    ],
)
def test_names_are_shown_as_one_harmless_line(given: str, shown: str) -> None:
    assert display_name(given) == shown


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "0" * 31 + "/",
        "0" * 32 + "%00",
    ],
)
@pytest.mark.parametrize("what", ["", "/report", "/goodnet", "/events"])
def test_only_an_id_leads_anywhere(here: Served, name: str, what: str) -> None:
    (here.jobs.folder.parent / "goodnet.safetensors").write_text("of somebody else")
    assert here.client().get(f"/jobs/{name}{what}").status_code == 404


@pytest.mark.parametrize("file", ["..%2froutes.py", "%2e%2e/routes.py", "routes.py", "base.html.j2", "..%5croutes.py"])
def test_only_named_files_are_given(here: Served, file: str) -> None:
    assert here.client().get(f"/static/{file}").status_code == 404


def test_one_job_does_not_lead_to_anothers_files(here: Served) -> None:
    one, other = here.job("one.pt"), here.job("other.pt")
    here.jobs.place(one.id).goodnet.write_bytes(b"the GoodNet of one")
    for path in (f"/jobs/{other.id}/../{one.id}/model", f"/jobs/{other.id}/goodnet", f"/jobs/{one.id}/model",
                 f"/jobs/{one.id}/goodnet/../model", f"/jobs/{one.id}/job.json"):  # fmt: skip
        assert here.client().get(path).status_code == 404
    assert "one.pt" not in here.client().get(f"/jobs/{other.id}").text
    assert here.client().get("/jobs/" + "0" * 32).status_code == 404


def test_every_answer_has_the_headers(here: Served) -> None:
    client, job = here.client(), here.job()
    answers = [client.get(path) for path in ("/", f"/jobs/{job.id}", "/static/serve.js", "/nothing")]
    answers += [
        here.client(known=False).get("/"),
        client.post("/jobs"),
        client.put("/"),
        client.get("/", headers={"host": "x"}),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "server" not in answer.headers
    assert client.get("/static/serve.js").headers["content-type"].startswith("text/javascript")
    for page in ("/", f"/jobs/{job.id}"):  # what the policy would stop is not tried either
        assert not re.search(r"<script>|\son\w+=|style=|<style|javascript:|https?:", client.get(page).text)
