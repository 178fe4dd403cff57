"""Text: the standard library as a data set, bytes on disk, windows that pack documents."""

import os
import sysconfig
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import small_stdlib
import training_fixtures as fixtures

from def_jax.trainer.data.text import catalogue, corpus, stdlib, windows
from def_jax.trainer.data.text.catalogue import open_text_folder

DOCUMENTS = (b'a', b'bcdefgh', 'ü'.encode(), b'ijklmnopqrst', b'uvw')  # 25 bytes
CONTEXT = 4
STDLIB = catalogue.TEXTS['python_stdlib']


@pytest.fixture(scope='session')
def library(tmp_path_factory):
    return small_stdlib.written(tmp_path_factory.getbasetemp())


def test_the_library_is_text_without_tests_packages_and_build_files(library):
    dataset = STDLIB(folder=library, context=CONTEXT)
    splits = (dataset.train, dataset.validation, dataset.test)
    documents = [
        bytes(document).decode()
        for split in splits
        for document in np.split(split.corpus.text, split.corpus.ends)[:-1]
    ]
    names = ('abc', 'bdb', 'cmd', 'json/decoder', 'datetime', 'operator', 'shutil')
    latin, ast = '# -*- coding: latin-1 -*-\n# ü\n', small_stdlib.FILES['ast.py'].decode()
    assert sorted(documents) == sorted([*(f'# {name}\n' for name in names), latin, ast])


def test_this_pythons_library_is_split_by_file(tmp_path):
    files = stdlib.stdlib_files(Path(sysconfig.get_path('stdlib')))
    assert 300 < len(files) < 1000
    assert {'abc.py', 'json/decoder.py', 'os.py'} <= files.keys()
    assert not any(path.startswith(('test/', 'site-packages/', 'idlelib/')) for path in files)
    names = ('abc.py', 'json/decoder.py', 'datetime.py', 'shutil.py', 'operator.py')  # each keeps its split
    assert [corpus.split_of(name) for name in names] == ['train', 'train', 'test', 'test', 'validation']
    sizes = dict.fromkeys(('train', 'validation', 'test'), 0)
    for path, file in files.items():
        sizes[corpus.split_of(path)] += file.stat().st_size
    assert sizes['train'] > 4_000_000
    assert min(sizes['validation'], sizes['test']) > 200_000
    with pytest.raises(ValueError, match=f'{tmp_path} has no Python modules. Use another data set'):
        stdlib.stdlib_files(tmp_path)


def test_what_is_written_is_read(tmp_path):
    corpus.write_corpus(tmp_path / 'bytes' / 'train', [*DOCUMENTS[:2], b'', *DOCUMENTS[2:]])
    opened = corpus.open_corpus(tmp_path / 'bytes' / 'train')
    assert bytes(opened.text) == b''.join(DOCUMENTS)
    assert opened.ends.tolist() == [1, 8, 10, 22, 25]
    assert len(opened.checksum) == 64
    assert isinstance(opened.text, np.memmap)
    corpus.write_corpus(tmp_path / 'bytes' / 'train', [b'of another process, too late'])
    assert bytes(opened.text) == bytes(corpus.open_corpus(tmp_path / 'bytes' / 'train').text)
    assert os.listdir(tmp_path / 'bytes') == ['train']


def interrupted():
    yield b'text'
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ('documents', 'error', 'message'),
    [
        (interrupted(), KeyboardInterrupt, '^$'),
        ([b'a', b'b\xff'], ValueError, r'document 1 of .*train holds the byte 0xFF, so it is not UTF-8'),
        ([b'a' * 100_000], OSError, 'too large'),
    ],
    ids=['interrupted', 'not UTF-8', 'a full disk'],
)
def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path, small_files, documents, error, message):
    with small_files(50_000), pytest.raises(error, match=message):
        corpus.write_corpus(tmp_path / 'train', documents)
    assert os.listdir(tmp_path) == []


def flipped(at):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return flip


@pytest.mark.parametrize(
    ('name', 'damage', 'message'),
    [
        ('bytes.bin', flipped(3), 'its checksum is not that of about.json'),
        ('ends.npy', flipped(-8), 'its checksum is not that of about.json'),
        ('bytes.bin', lambda path: os.truncate(path, 20), 'its checksum is not that of about.json'),
        ('ends.npy', flipped(0), 'ValueError: '),
        ('about.json', lambda path: os.truncate(path, 20), 'JSONDecodeError: '),
        ('about.json', lambda path: path.write_text('{"bytes": 25}'), "KeyError: 'sha256'"),
        ('bytes.bin', Path.unlink, 'FileNotFoundError: '),
    ],
)
def test_a_damaged_corpus_is_refused(tmp_path, name, damage, message):
    folder = tmp_path / 'train'
    corpus.write_corpus(folder, DOCUMENTS)
    damage(folder / name)
    with fixtures.refused(rf'^{folder} is damaged, or of an earlier version \({message}.*\. Delete that'):
        corpus.open_corpus(folder)


def test_a_checksum_is_of_the_bytes_and_of_where_documents_end(tmp_path):
    checksums = set()
    for number, documents in enumerate((DOCUMENTS, [b''.join(DOCUMENTS)], [*DOCUMENTS, b'x'])):
        corpus.write_corpus(tmp_path / str(number), documents)
        checksums.add(corpus.open_corpus(tmp_path / str(number)).checksum)
    assert len(checksums) == 3


def written(root, **documents):
    for name, text in documents.items():
        file = root / f'{name}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    return root


def test_a_folder_is_divided_by_the_paths_of_its_files(tmp_path):
    texts = {f'{folder}/{number}': f'{number} λ'.encode() for folder in 'ab' for number in range(20)}
    root = written(tmp_path / 'texts', **texts)
    written(root, **{'.hidden/1': b'no'})
    dataset = open_text_folder(root, context=4)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(split.corpus.about['documents'] for split in splits) == len(texts)
    for name, split in zip(('train', 'validation', 'test'), splits, strict=True):
        names = [name_ for name_ in sorted(f'{key}.txt' for key in texts) if corpus.split_of(name_) == name]
        assert bytes(split.corpus.text) == b''.join(texts[each.removesuffix('.txt')] for each in names)
    more = open_text_folder(written(root, c=b'another'), context=4)
    after = (more.train, more.validation, more.test)
    assert sum(x.corpus.about != y.corpus.about for x, y in zip(splits, after, strict=True)) == 1


@pytest.mark.parametrize('line', ['λ' * 49 + '\n', 'λ'])
def test_a_single_file_is_cut_where_a_line_or_a_character_begins(tmp_path, line):
    text = (line * (10_001 // len(line))).encode()
    dataset = open_text_folder(written(tmp_path / 'texts', a=text), context=4)
    parts = [bytes(split.corpus.text) for split in (dataset.train, dataset.validation, dataset.test)]
    assert b''.join(parts) == text and all(part.decode() for part in parts)
    np.testing.assert_allclose([len(part) / len(text) for part in parts], [0.8, 0.1, 0.1], atol=0.011)
    assert all(part.endswith(b'\n') for part in parts) == ('\n' in line)


@pytest.mark.parametrize('count', [2, 10])
def test_a_few_files_are_cut_where_their_paths_would_leave_a_split_empty(tmp_path, count):
    texts = {f'{number}x': f'{number} {"λ" * 100}'.encode() for number in range(count)}
    assert {corpus.split_of(f'{name}.txt') for name in texts} < {'train', 'validation', 'test'}
    dataset = open_text_folder(written(tmp_path / 'texts', **texts), context=4)
    splits = (dataset.train, dataset.validation, dataset.test)
    documents = [np.split(split.corpus.text, split.corpus.ends)[:-1] for split in splits]
    assert [b''.join(map(bytes, parts)) for parts in zip(*documents, strict=True)] == [*texts.values()]


def test_a_folder_takes_little_more_memory_than_its_text_and_one_file(tmp_path, monkeypatch):
    text = ('🙂' + 'x' * 99).encode() * 2000
    root = written(tmp_path / 'texts', **{str(number): text for number in range(30)})
    tracemalloc.start()
    open_text_folder(root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 30 * len(text)
    monkeypatch.setattr(catalogue, '_PIECE', 7)  # within characters
    written(root, **{'5': text + b'\xe9x'})
    with fixtures.refused(rf"5.txt' is not UTF-8 \(invalid continuation byte 0xe9 at {len(text)}\)"):
        open_text_folder(root)


def test_a_byte_order_mark_is_no_text(tmp_path):
    texts = {str(number): f'{number};'.encode('utf-8-sig') for number in range(40)}
    dataset = open_text_folder(written(tmp_path / 'texts', **texts), context=4)
    splits = (dataset.train, dataset.validation, dataset.test)
    found = b''.join(bytes(split.corpus.text) for split in splits).split(b';')[:-1]
    assert sorted(map(int, found)) == list(range(40))


def test_windows_past_two_to_the_31_are_those_of_a_small_corpus(tmp_path):
    start, tail = 1 << 31, b''.join(DOCUMENTS)
    with (tmp_path / 'sparse').open('wb') as file:
        file.seek(start)
        file.write(tail)
    ends = np.cumsum([len(document) for document in DOCUMENTS])
    text = np.memmap(tmp_path / 'sparse', np.uint8, 'r')
    large = windows.Windows(corpus.Corpus(text, np.array([start, *(start + ends)])), CONTEXT)
    small = windows.Windows(corpus.Corpus(text[start:], ends), CONTEXT)
    first, count = start // CONTEXT, len(small)
    for split, places in (
        (large, first + np.arange(count)),
        (large.part(first, first + count), np.arange(count)),
    ):
        jax.tree.map(np.testing.assert_array_equal, split.take(places), small.take(np.arange(count)))


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    root = written(tmp_path / 'texts', a=b'text' * 100)
    for make in (os.mkfifo, lambda path: path.symlink_to('nothing')):
        make(root / 'b.txt')
        with fixtures.refused("b.txt' is not a regular file"):
            open_text_folder(root)
        (root / 'b.txt').unlink()


def test_links_are_followed_but_not_in_circles_and_names_need_not_be_utf8(tmp_path):
    root = written(tmp_path / 'texts', **{f'a/{number}': f'{number};'.encode() for number in range(40)})
    written(tmp_path / 'elsewhere', **{f'inner/{number}': f'{number};'.encode() for number in range(40, 80)})
    (root / 'linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'inner' / 'circle').symlink_to(tmp_path / 'elsewhere')
    (root / 'A').symlink_to(root / 'a')  # the same files again, as if for other splits
    (root / os.fsdecode(b'caf\xe9.txt')).write_text('80;')
    dataset = open_text_folder(root, context=4)
    splits = (dataset.train, dataset.validation, dataset.test)
    found = b''.join(bytes(split.corpus.text) for split in splits).split(b';')[:-1]
    assert sorted(map(int, found)) == list(range(81))


@pytest.mark.parametrize(
    ('documents', 'message'),
    [
        ({}, "path='.*texts' is not a folder"),
        ({'a': b't', 'b': b't'}, 'text_folder texts has 2 files with 2 bytes. Put text there'),
        ({'a': b'text'}, 'text_folder texts has 1 files with 4 bytes. Put text there'),
        ({'.hidden/a': b'text'}, 'text_folder texts has 0 files with 0 bytes. Put text there'),
        ({'a': b'caf\xe9'}, r"'.*a.txt' is not UTF-8 \(unexpected end of data 0xe9 at 3\). Convert"),
    ],
)
def test_a_folder_of_text_that_cannot_be_read_is_refused(tmp_path, documents, message):
    with fixtures.refused(message):
        open_text_folder(written(tmp_path / 'texts', **documents))
