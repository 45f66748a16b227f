"""The page in a real browser: nothing fails, nothing is asked of the network, everything is drawn and fits."""

import pytest

from potstill.report.page import build_report

_EVIL = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>\u202e\x00"
_TOKEN = _EVIL + "looooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooong"


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make_run):
    """A plain page, and one whose names, tokens and texts are hostile."""
    plain = build_report(make_run(tmp_path_factory.mktemp("plain"), {}))
    hostile = build_report(make_run(tmp_path_factory.mktemp("hostile"), {"every string": _TOKEN}))
    return {"plain": plain, "hostile": hostile}


@pytest.mark.parametrize("which", ["plain", "hostile"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_error_no_request_and_no_sideways_scroll(look, pages, which, width):
    """The script ran, the policy had nothing to block, only the file itself was loaded, and the page fits."""
    browser = look(pages[which], width=width)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.evaluate("document.documentElement.dataset.script") == "ran"
    assert browser.evaluate("window.evil === undefined")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wrong = [event for event in browser.events if event.get("method") in {"Log.entryAdded", "Runtime.exceptionThrown"}]
    assert wrong == []
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1


@pytest.mark.parametrize("script", [True, False])
def test_charts_are_drawn_with_and_without_script(look, pages, script):
    """Each chart shows marks that have a size on the screen."""
    browser = look(pages["plain"], script=script)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('figure.chart svg')].map(svg => [...svg.querySelectorAll('.tip')]"
        ".filter(mark => mark.getBoundingClientRect().width > 0).length)"
    )
    assert len(sizes) >= 10
    assert min(sizes) >= 4


def test_hovering_a_mark_tells_its_value(look, pages):
    """The tooltip holds the figure with its unit."""
    browser = look(pages["plain"])
    browser.evaluate(
        "document.querySelector('figure.chart .tip').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    _settle(browser)
    x, y = browser.evaluate(
        "(() => { const at = document.querySelector('figure.chart .tip').getBoundingClientRect();"
        " return [at.x + at.width / 2, at.y + at.height / 2] })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert "nats" in browser.evaluate("document.querySelector('#tooltip:not([hidden])').textContent")


def test_the_policy_forbids_other_scripts_and_places(look, pages):
    """What a hostile string would want to do is refused by the page itself."""
    browser = look(pages["plain"])
    browser.evaluate(
        "window.blocked = [];"
        "document.addEventListener('securitypolicyviolation', e => blocked.push(e.violatedDirective));"
        "const s = document.createElement('script'); s.textContent = 'window.evil = 1'; document.body.append(s);"
        "const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i);"
    )
    _settle(browser)
    assert browser.evaluate("window.evil === undefined")
    assert {"script-src-elem", "img-src"} <= set(browser.evaluate("blocked"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(look, pages, scheme):
    """Every colour used for text reaches 4.5 : 1 on its paper (WCAG AA); faint signs reach 3 : 1."""
    browser = look(pages["plain"], scheme=scheme)
    names = ("ink", "soft", "faint", "teacher", "student", "twin", "int8", "pruned", "paper", "raised")
    colours = {
        name: browser.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        for name in names
    }
    for name in names[:-2]:
        wanted = 3 if name == "faint" else 4.5
        for ground in ("paper", "raised"):
            assert _contrast(colours[name], colours[ground]) >= wanted, (name, ground)


def _settle(browser):
    """Let scrolling, drawing and blocked requests come to rest."""
    browser.call("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 300))", awaitPromise=True)


def _contrast(first, second):
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
