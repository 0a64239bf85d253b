"""Checks of a page: its tags, what it would fetch, and how wide Chromium finds it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def check_nothing_is_fetched(page):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.named("script", "link", "iframe", "object", "embed", "base")
    assert not re.search(r"https?://|url\(|@import", text.replace("&#39;", "'"))
    sources = {attributes["src"][:5] for _, attributes in tags.tags if "src" in attributes}
    assert sources == {"data:"}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def browse(folder, file, width, *flags):
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        *flags,
        file.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def requested_hosts(folder, file):
    """Hosts that the browser asked for, without those that Chromium itself looks up at every
    start."""
    log = folder / "net.json"
    picture = f"--screenshot={folder / 'page.png'}"
    done = browse(folder, file, 1200, picture, f"--log-net-log={log}", "--enable-logging=stderr")
    hosts = set(re.findall(r'"url":"(?:https?|wss?)://([^/"]+)', log.read_text()))
    return {
        host for host in hosts if not re.search(r"(^|\.)(google|googleapis|gvt1)\.com$", host)
    }, done.stderr


def widths(folder, page, width):
    """The width that a page needs, and that of a window of `width`, in pixels."""
    # The page forbids scripts, so a copy without that line measures itself.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    probe = (
        "<script>document.title = innerWidth + ' ' + "
        "document.documentElement.scrollWidth</script></body>"
    )
    (folder / "copy.html").write_text(text.replace("</body>", probe))
    measured = browse(folder, folder / "copy.html", width, "--dump-dom").stdout
    given, needed = re.search(r"<title>(\d+) (\d+)</title>", measured).groups()
    return int(needed), int(given)
