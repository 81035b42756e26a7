"""The live page in a real browser, headless; skipped where there is none."""

import os
import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.chrome import service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from batch_rl_dr3.reporting import live, live_run, live_runs
from batch_rl_dr3.runs import run_directory

_CHROMIUM = shutil.which('chromium')
_DRIVER = shutil.which('chromedriver')
_SECONDS = 30
_SWITCHES = (
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
)

pytestmark = pytest.mark.skipif(
  _CHROMIUM is None or _DRIVER is None,
  reason='needs chromium and chromedriver: apt-get install chromium '
  'chromium-driver',
)


@pytest.fixture
def browser(tmp_path):
  options = webdriver.ChromeOptions()
  options.binary_location = _CHROMIUM
  for switch in (*_SWITCHES, f'--user-data-dir={tmp_path / "browser"}'):
    options.add_argument(switch)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  driver = webdriver.Chrome(options, service.Service(_DRIVER))
  yield driver
  driver.quit()


@pytest.fixture
def all_states(make_run):
  """A run in each state; returns that of the running one."""
  metrics = [
    {'gradient_steps': s, 'loss_bellman': 1 + s, 'gradient_steps_per_second': 5}
    for s in (0, 10, 20)
  ]
  nan = [*metrics, {'gradient_steps': 30, 'loss_bellman': 'nan'}]
  make_run('dqn', metrics=metrics, returns={10: [1], 20: [3]})
  make_run('cql', metrics=nan, finished=False)
  make_run('cql_dr3', finished=False)
  stalled = make_run('rem', metrics=metrics, finished=False)
  long_ago = time.time() - 10_000
  for path in stalled.iterdir():
    os.utime(path, (long_ago, long_ago))
  damaged = make_run('damaged' * 9, finished=False)
  (damaged / run_directory.PROVENANCE).write_text('{')
  return make_run(
    'rem_dr3',
    metrics=metrics,
    returns={10: [1], 20: [3]},
    finished=False,
    game='<i>' + 'game' * 20,
    total_gradient_steps=100,
  )


def _width(browser, width):
  browser.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride',
    {'width': width, 'height': 844, 'deviceScaleFactor': 1, 'mobile': False},
  )


def _text(browser):
  return browser.find_element(By.TAG_NAME, 'body').text


def test_the_page_follows_the_runs(browser, all_states, make_run, tmp_path):
  runs = live_runs.LiveRuns([str(tmp_path / 'runs' / '*')])
  until = WebDriverWait(browser, _SECONDS).until
  with live.serve(runs, '127.0.0.1', 0) as address:
    browser.get(address)
    until(lambda b: '6 runs' in _text(b))
    for state in live_run.STATES:
      assert f'1 {state}' in _text(browser)
      (card,) = browser.find_elements(By.CSS_SELECTOR, f'.run.{state}')
      assert card.is_displayed()
    card = browser.find_element(By.CSS_SELECTOR, '.run.running')
    assert '20 of 100 gradient steps, 5/s' in card.text
    assert '16 s left' in card.text
    # What a run says is text.
    assert '<i>game' in card.text
    assert browser.find_elements(By.TAG_NAME, 'i') == []
    curve = card.find_element(By.CSS_SELECTOR, '.loss_bellman path')
    assert curve.get_attribute('d') == 'M0.0 28.0L50.0 15.0L100.0 2.0'

    for width in (390, 1200):
      _width(browser, width)
      assert browser.execute_script('return innerWidth') == width
      assert (
        browser.execute_script('return document.documentElement.scrollWidth')
        <= width
      )

    # A run grows, one comes and one goes, and nobody reloads the page.
    with open(all_states / run_directory.METRICS, 'a') as file:
      file.write('0,60,1,7,,,,,,,,10\n')
    make_run('dqn_dr3', finished=False)
    shutil.rmtree(tmp_path / 'runs' / 'cql')
    until(lambda b: '60 of 100 gradient steps' in card.text)
    until(lambda b: '2 starting' in _text(b))
    assert 'diverged' not in browser.find_element(By.ID, 'states').text

    browser.find_element(By.XPATH, '//button[text()="1 finished"]').click()
    shown = browser.find_elements(By.CLASS_NAME, 'run')
    assert [c.text.split()[0] for c in shown if c.is_displayed()] == ['DQN']
    assert browser.get_log('browser') == []
  until(lambda b: 'cannot be reached' in _text(b))


def test_an_empty_page_says_why(browser, tmp_path):
  runs = live_runs.LiveRuns([str(tmp_path / 'runs' / '*')])
  with live.serve(runs, '127.0.0.1', 0) as address:
    browser.get(address)
    until = WebDriverWait(browser, _SECONDS).until
    until(lambda b: 'No run directory matches' in _text(b))
    assert browser.get_log('browser') == []
