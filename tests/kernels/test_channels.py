"""How kernels that walk along time cut it."""

from subquad.kernels import _channels, _target


def test_time_is_cut_where_channels_are_few(monkeypatch):
    for module in (_target, _channels):
        monkeypatch.setattr(module, "multiprocessors", lambda: 132)
    assert _channels.segment_of(4096, 256) == 4096
    assert _channels.segment_of(4096, 8) == 241  # 17 segments: as many programs as multiprocessors
    assert _channels.segment_of(4096, 8, multiple=32) == 256
    assert _channels.segment_of(200, 1) == 200  # too short to be cut
