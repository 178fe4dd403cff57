"""result.json: which code a run's numbers are of."""

import subprocess

import def_jax
from def_jax.trainer import results


def test_a_result_names_its_commit_and_says_whether_the_code_differed(tmp_path, monkeypatch):
    """A mark, and nothing where the package is no part of a checkout, though its folder be in one."""

    def git(*arguments):
        return subprocess.check_output(['git', '-C', str(tmp_path), *arguments], text=True).strip()

    package = tmp_path / '__init__.py'
    package.write_text('')
    monkeypatch.setattr(def_jax, '__file__', str(package))
    git('init', '--quiet')
    assert results._commit() is None
    git('add', '__init__.py')
    git('-c', 'user.name=a', '-c', 'user.email=a@example.org', 'commit', '--quiet', '-m', 'a')
    head = git('rev-parse', 'HEAD')
    (tmp_path / 'notes').write_text('beside the code')
    assert results._commit() == head
    package.write_text('changed = True')
    assert results._commit() == f'{head}+'
