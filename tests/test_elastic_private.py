"""What happens with a JAX that lacks what def_jax uses of it without a public name."""

from unittest import mock

import jax
import pytest

from def_jax.elastic import network, private, service


def test_gloo_then_listens_where_it_does_by_default(monkeypatch):
    monkeypatch.delattr('jax._src.xla_bridge.make_cpu_client')
    registered, update = mock.Mock(), mock.Mock()
    monkeypatch.setattr(network, 'register_backend_factory', registered)
    monkeypatch.setattr(jax.config, 'update', update)
    with pytest.warns(UserWarning, match='does not let def_jax choose where gloo listens'):
        network.gloo_listens_on('127.0.0.1')
    update.assert_called_once_with('jax_cpu_collectives_implementation', 'gloo')
    assert not registered.called


def test_elastic_runs_are_then_refused_and_versions_not_compared(monkeypatch):
    monkeypatch.setattr(service, '_state', None)
    with pytest.raises(ValueError, match=r'has no coordination service that def_jax .* knows'):
        service.initialize('127.0.0.1:1', 1, 0)
    service.check_versions()


def test_this_jax_has_it_all():
    assert hasattr(private.coordination(), 'client') and callable(private.gloo_client('127.0.0.1'))
