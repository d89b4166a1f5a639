"""The search page in a browser: given a picture, clicked on, narrowed, and with names that would be markup."""

import contextlib
import time

import pytest
from search_folders import make_encoder, make_folder, pixels, write_picture
from serving import png, serving

from simclr_cifar.search import Index


@pytest.fixture
def opened(driver, port):
    driver.set_window_size(1200, 900)
    driver.get(f'http://127.0.0.1:{port}/')
    wait(lambda: len(find(driver, '.found button')) == 10)
    yield driver
    assert driver.get_log('browser') == []


def find(driver, selector):
    from selenium.webdriver.common.by import By

    return driver.find_elements(By.CSS_SELECTOR, selector)


def wait(condition):
    from selenium.common.exceptions import StaleElementReferenceException

    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(StaleElementReferenceException):  # What it looked at was just replaced.
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(driver):
    return find(driver, '#status')[0].text


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], 'mine.png', { type: 'image/png' }));
const event = arguments[1] === 'drop'
  ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
  : new ClipboardEvent('paste', { clipboardData: data, bubbles: true });
document.body.dispatchEvent(event);
"""


@pytest.mark.parametrize('how', ['drop', 'paste', 'file'])
def test_a_picture_is_given_and_its_neighbours_are_clicked_on(opened, root, how, tmp_path):
    import base64

    index = Index.open(root / 'index', make_encoder())
    if how == 'file':
        find(opened, '#file')[0].send_keys(str(write_picture(tmp_path / 'mine.png', 5)))
    else:
        opened.execute_script(DROP, base64.b64encode(png(5)).decode(), how)
    wait(lambda: 'like mine.png' in status(opened))
    expected = index.query(pixels(5), k=10)
    buttons = find(opened, '.found button')
    assert [button.get_attribute('title') for button in buttons] == [match.path for match in expected]
    assert '1.000' in buttons[0].text
    wait(lambda: opened.execute_script("return [...document.querySelectorAll('img')].every((i) => i.complete)"))
    assert opened.execute_script("return [...document.querySelectorAll('.found img')].every((i) => i.naturalWidth > 0)")

    buttons[3].click()
    name = '/'.join(expected[3].path.split('/')[-2:])
    wait(lambda: f'like {name}' in status(opened))
    assert find(opened, '.found button')[0].get_attribute('title') == expected[3].path
    find(opened, '.found button')[1].click()
    wait(lambda: name not in status(opened))
    opened.back()
    wait(lambda: f'like {name}' in status(opened))


def test_classes_are_chosen_and_the_map_leads_to_pictures(opened):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.select import Select

    find(opened, '.found button')[0].click()
    wait(lambda: 'The 10 pictures' in status(opened) or 'No match' in status(opened))
    Select(find(opened, '#class')[0]).select_by_visible_text('a b&c (13)')
    wait(lambda: {'a b&c'} == {line.text for line in find(opened, '.found .line > span')})
    Select(find(opened, '#k')[0]).select_by_visible_text('20')
    wait(lambda: len(find(opened, '.found button')) == 13)
    wait(lambda: find(opened, 'canvas')[0].is_displayed())
    canvas = find(opened, 'canvas')[0]
    opened.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', canvas)
    x, y = opened.execute_script('return place(points[20])')
    size = canvas.size
    at = round(x - size['width'] / 2), round(y - size['height'] / 2)
    ActionChains(opened).move_to_element_with_offset(canvas, *at).perform()
    wait(lambda: find(opened, '#near')[0].is_displayed())
    before = opened.current_url
    ActionChains(opened).move_to_element_with_offset(canvas, *at).click().perform()
    wait(lambda: opened.current_url != before)
    # Moved and scaled, it leads elsewhere and stays whole.
    canvas.send_keys('+', '+', Keys.ARROW_LEFT)
    assert opened.execute_script('return view.scale') == pytest.approx(1.5625)
    canvas.send_keys('-', '-', '-')
    assert opened.execute_script('return view') == {'scale': 1, 'x': 0, 'y': 0}


SLOWLY = """
const whole = window.fetch;
window.fetch = async (path, options) => {
  const response = await whole(path, options);
  if (path.startsWith(arguments[0])) await new Promise((done) => setTimeout(done, 800));
  return response;
};
"""


def test_the_last_question_is_answered(opened):
    opened.execute_script(SLOWLY, 'like')
    find(opened, '.found button')[2].click()
    find(opened, '#again')[0].click()
    wait(lambda: 'Choose one' in status(opened))
    time.sleep(1)
    assert 'Choose one' in status(opened)
    assert '#' not in opened.current_url.rstrip('#')


def test_a_slow_beginning_does_not_hide_an_answer(opened):
    opened.execute_script(SLOWLY, 'some')
    find(opened, '#again')[0].click()
    find(opened, '.found button')[2].click()
    wait(lambda: 'like ' in status(opened))
    time.sleep(1)
    assert 'like ' in status(opened)


def test_others_to_begin_with_are_others(opened):
    def shown():
        titles = "return [...document.querySelectorAll('.found button')].map((each) => each.title)"
        return set(opened.execute_script(titles))

    before = shown()
    assert len(before) == 10
    find(opened, '#again')[0].click()
    wait(lambda: shown() and not shown() & before)
    assert len(shown()) == 10


def test_what_is_no_picture_is_said_on_the_page(driver, port, tmp_path):
    driver.get(f'http://127.0.0.1:{port}/')
    (tmp_path / 'a.png').write_text('text')
    find(driver, '#file')[0].send_keys(str(tmp_path / 'a.png'))
    wait(lambda: 'is no picture' in status(driver))
    driver.get_log('browser')  # Where it stands, too, as the status of what it asked for.


def test_names_are_text(driver, tmp_path):
    """Whatever a file or a folder is called, no part of it is markup."""
    make_folder(tmp_path / 'pictures', 12, ('<img src=x onerror=alert(1)>', '"><script>alert(1)<'))
    index = Index.build(tmp_path / 'index', make_encoder(), tmp_path / 'pictures')
    with serving(index) as port:
        driver.get(f'http://127.0.0.1:{port}/#0')
        wait(lambda: len(find(driver, '.found button')) == 10)
        assert find(driver, '.found .line > span')[0].text in index.classes()
        assert driver.get_log('browser') == []


def test_it_fits_a_phone(opened):
    opened.set_window_size(390, 844)
    find(opened, '.found button')[0].click()
    wait(lambda: 'like' in status(opened))
    assert opened.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
