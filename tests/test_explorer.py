"""The explorer in a browser: cells, filters, points, keys, widths."""

import io

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from test_pages import GALLERY, NAMES, TITLE, C, make_explorer, render, smooth_images


@pytest.fixture(scope='module')
def page():
    return render([('first', make_explorer()), ('second', make_explorer(channels=1))])


@pytest.fixture
def opened(driver, page, tmp_path):
    """The page, open in a browser."""
    path = tmp_path / 'page.html'
    path.write_text(page)
    driver.set_window_size(1200, 900)  # As other tests of this browser may not have left it.
    driver.get(path.as_uri())
    yield driver
    # An alert would have made this fail, too.
    assert driver.get_log('browser') == []
    assert find(driver, 'img') == []


def find(driver, selector):
    """Returns what the selector finds in the second explorer; the first is there to get in its way."""
    return driver.find_elements(By.CSS_SELECTOR, f'#second {selector}')


def numbers(driver, selector):
    """Returns the numbers in the atlas of the pictures that the selector finds and that are shown."""
    script = """return [...document.querySelectorAll(arguments[0])].filter((each) => each.offsetParent).map((each) => {
      const style = getComputedStyle(each);
      const value = (name) => Number(style.getPropertyValue(name));
      return value('--column') + value('--row') * value('--columns');
    })"""
    return driver.execute_script(script, f'#second {selector}')


def click(driver, element):
    driver.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', element)
    ActionChains(driver).move_to_element(element).click().perform()


def point_at(driver, element):
    driver.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', element)
    ActionChains(driver).move_to_element(element).perform()


def pairs_shown(driver):
    found = numbers(driver, '.matrices .panel .picture')
    return list(zip(found[::2], found[1::2], strict=True))


def test_the_page_opens_without_errors(opened):
    assert opened.title == TITLE
    assert find(opened, '.matrices .panel p')[0].text.startswith(f'{NAMES[0]} → {NAMES[1]}: 99.4 %')
    assert len(numbers(opened, '.query > .picture')) == len(GALLERY)


def test_a_picture_is_cut_out_of_the_atlas(opened):
    shown = find(opened, '.query > .picture')[2]
    opened.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', shown)
    pixels = np.asarray(Image.open(io.BytesIO(shown.screenshot_as_png)).convert('RGB')).astype(int)
    expected = smooth_images(24, channels=1)[GALLERY[2][0]].repeat(2, axis=0).repeat(2, axis=1)
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels - expected)[8:-8, 8:-8].mean() < 2
    assert np.abs(pixels - expected)[:2, 8:-8].mean() < 4


def test_a_cell_shows_its_pairs(opened):
    cells = find(opened, '.confusion button')
    panel = find(opened, '.matrices .panel')[0]
    assert len(cells) == C * C
    click(opened, cells[0 * C + 1])
    assert pairs_shown(opened) == [(0, 1), (4, 5), (8, 1)]
    text = panel.text
    assert f"{NAMES[0]} → {NAMES[1]}: 99.4 % of {NAMES[0]}'s neighbours, 1,234; the most similar:" in text
    assert 'similarity 0.9900' in text and 'test 100 → 103' in text
    height = panel.size['height']

    point_at(opened, cells[2 * C + 3])
    assert pairs_shown(opened) == [(2, 3)]
    point_at(opened, cells[1 * C + 0])
    assert pairs_shown(opened) == []
    assert 'there are none' in panel.text
    assert panel.size['height'] == height
    point_at(opened, cells[0 * C + 3])
    assert 'no pairs were kept' in panel.text

    point_at(opened, panel)
    assert pairs_shown(opened) == [(0, 1), (4, 5), (8, 1)], 'the cell that was clicked stays'
    assert cells[1].get_attribute('aria-pressed') == 'true'
    assert '<script>' in find(opened, '.matrices .panel p')[0].text


def test_cells_are_reached_with_keys(opened):
    cells = find(opened, '.confusion button')
    click(opened, cells[0])
    for key in [Keys.ARROW_DOWN] * 3 + [Keys.ARROW_UP] + [Keys.ARROW_RIGHT] * 4 + [Keys.ARROW_LEFT, Keys.ENTER]:
        ActionChains(opened).send_keys(key).perform()
    assert opened.switch_to.active_element == cells[2 * C + 3]
    assert pairs_shown(opened) == [(2, 3)]
    assert [cell.get_attribute('tabindex') for cell in cells].count('0') == 1
    point_at(opened, find(opened, '.gallery')[0])
    assert pairs_shown(opened) == [(2, 3)]


def test_a_common_mistake_is_a_way_to_its_cell(opened):
    mistakes = find(opened, '.mistakes button')
    shown = [text for text in (mistake.text for mistake in mistakes) if f'{NAMES[2]} → {NAMES[3]}' in text]
    assert len(shown) == 1
    click(opened, next(mistake for mistake in mistakes if mistake.text == shown[0]))
    point_at(opened, find(opened, '.gallery')[0])
    assert pairs_shown(opened) == [(2, 3)]


@pytest.mark.parametrize(
    ('chosen', 'verdict', 'expected'),
    [
        ('', '', [0, 1, 6, 3, 4]),
        ('0', '', [0, 4]),
        ('0', 'wrong', [0]),
        ('0', 'right', [4]),
        ('', 'right', [6, 3, 4]),
        ('', 'wrong', [0, 1]),
        ('1', 'right', []),
    ],
)
def test_filters_show_what_was_asked_for(opened, chosen, verdict, expected):
    Select(find(opened, '.filters select')[0]).select_by_value(chosen)
    click(opened, find(opened, f'.filters input[value="{verdict}"] + span')[0])
    assert numbers(opened, '.query > .picture') == expected
    assert find(opened, '.filters output')[0].text == f'{len(expected)} of {len(GALLERY)} queries'
    found = dict(GALLERY)
    assert numbers(opened, '.found .picture') == [number for query in expected for number in found[query]]
    marks = [mark.get_attribute('class') for mark in find(opened, '.query:not([hidden]) .found > span')]
    assert marks == ['right' if number % C == query % C else 'wrong' for query in expected for number in found[query]]


def test_a_point_shows_its_picture(opened):
    circles = find(opened, '.points circle')
    assert [circle.get_attribute('class') for circle in circles].count('class-2 wrong') == 0
    point_at(opened, circles[5])
    assert numbers(opened, '.point .picture') == [11]
    assert find(opened, '.point')[0].text.split('\n') == [NAMES[3], f'vote: {NAMES[2]}', 'test image 133']
    assert 'wrong' in circles[5].get_attribute('class')
    point_at(opened, circles[6])
    assert numbers(opened, '.point .picture') == [12]
    assert find(opened, '.point')[0].text.startswith(NAMES[0])

    opened.execute_script('arguments[0].focus()', find(opened, '.projection svg')[0])
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    assert numbers(opened, '.point .picture') == [13]
    ActionChains(opened).send_keys(Keys.ARROW_UP).perform()
    assert numbers(opened, '.point .picture') == [9]


def test_a_class_of_the_legend_is_highlighted(opened):
    circles, legend = find(opened, '.points circle'), find(opened, '.legend button')

    def bright():
        return [number for number, circle in enumerate(circles) if 'dim' not in circle.get_attribute('class')]

    click(opened, legend[2])
    assert bright() == [0, 4, 8]
    click(opened, legend[3])
    assert bright() == [0, 1, 4, 5, 8, 9]
    click(opened, legend[2])
    click(opened, legend[3])
    assert bright() == list(range(12))


@pytest.mark.parametrize('width', [390, 1200])
def test_the_page_never_scrolls_sideways(opened, width):
    metrics = {'width': width, 'height': 844, 'deviceScaleFactor': 1, 'mobile': width < 500}
    opened.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    try:
        assert opened.execute_script('return innerWidth') == width
        assert opened.execute_script('return document.documentElement.scrollWidth') <= width
    finally:
        opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
