"Places on the sky: the angle between two, the cell of one, and what is no place."

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix

from astroclip.files.cutout_files import Geometry
from astroclip.metrics.sphere import checked_places, chord_of, healpix_index, on_sky, separation, unit_sphere
from astroclip.panels.observed import arcsec_apart, object_name
from astroclip.surveys.folders import nearest_redshift, same_object


def anywhere(n, seed=0):
    "Places over the whole sky, a quarter of them close to a pole, and a quarter close to right ascension 0."
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    dec[::4] = np.sign(dec[::4]) * (90 - 10 ** rng.uniform(-7, 0, len(dec[::4])))
    ra[1::4] = rng.normal(0, 1e-4, len(ra[1::4])) % 360
    return ra, dec


@pytest.mark.parametrize("places, arcsec", [
    ((359.9999, 0, 0.0001, 0), 0.72),  # across right ascension 0
    ((10, 89.9999, 190, 89.9999), 0.72),  # over the pole
    ((10, -90, 200, -90), 0),  # which has every right ascension
    ((0, 20, 180, -20), 648000),  # antipodes
    ((77, 90, 5, 0), 324000),  # pole to equator
    ((10, 60, 10 + 2 / 3600, 60), 1),  # cos 60 = 1/2
    ((-1, 5, 359, 5), 0),  # a turn
])  # fmt: skip
def test_angles_by_hand(places, arcsec):
    assert separation(*places) == pytest.approx(arcsec, abs=1e-5)


def test_angles_are_those_of_astropy_and_the_same_both_ways():
    (ra, dec), rng = anywhere(4000), np.random.default_rng(1)
    turn, step = rng.uniform(0, 360, 4000), 10 ** rng.uniform(-9, np.log10(180), 4000)
    there = SkyCoord(ra, dec, unit="deg").directional_offset_by(turn * u.deg, step * u.deg)
    ours = separation(ra, dec, there.ra.deg, there.dec.deg)
    np.testing.assert_allclose(ours, SkyCoord(ra, dec, unit="deg").separation(there).arcsec, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(separation(there.ra.deg, there.dec.deg, ra, dec), ours, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(separation(ra + 720, dec, there.ra.deg - 360, there.dec.deg), ours, atol=1e-6)


def test_chord_and_angle_agree():
    (ra, dec), (other_ra, other_dec) = anywhere(500), anywhere(500, seed=2)
    chord = np.linalg.norm(unit_sphere(ra, dec) - unit_sphere(other_ra, other_dec), axis=1)
    np.testing.assert_allclose([chord_of(s) for s in separation(ra, dec, other_ra, other_dec)], chord, atol=1e-14)


def test_cells_are_those_of_astropy_healpix_and_nest():
    ra, dec = anywhere(4000)
    finest = healpix_index(ra, dec, 29)
    for order in (0, 6, 13):
        theirs = HEALPix(2**order, "nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)
        assert (healpix_index(ra, dec, order) == theirs).all()
        assert (finest >> 2 * (29 - order) == theirs).all()
    assert (healpix_index(ra + 360, dec, 6) == healpix_index(ra, dec, 6)).all()
    assert finest.dtype == np.int64 and healpix_index(150.0, 2.2, 6).shape == ()


def test_what_is_no_place_is_named():
    for call in (checked_places, lambda ra, dec: healpix_index(ra, dec, 6), lambda ra, dec: separation(ra, dec, 0, 0)):
        with pytest.raises(ValueError, match=r"position 2 is ra 3.0, dec 90.5, and 2 of 4 .* expected degrees"):
            call([1.0, 2, 3, np.inf], [0.0, -90, 90.5, 0])
    with pytest.raises(ValueError, match="position 0 is ra 1.0, dec nan"):
        separation([0.0, 1.0], 0.0, 1.0, None)
    assert on_sky([None, 370.0], [0.0, 90.0]).tolist() == [False, True]


def test_unknown_places_are_nobody_s_neighbours():
    "A distance of NaN is not above any radius: pictures without a place were once all taken for one galaxy."

    class Spectrum:
        redshift, source = 0.1, "SDSS x"

        def __init__(self, ra, dec):
            self.ra, self.dec = ra, dec

    here, nowhere = Spectrum(10.0, 60.0), [Spectrum(None, None), Spectrum(np.nan, 60.0), Spectrum(10.0, 95.0)]
    assert [arcsec_apart(here, x) for x in nowhere] == [np.inf] * 3 and arcsec_apart(here, here) == 0
    assert arcsec_apart(Geometry(), Geometry()) == np.inf and object_name("a_b.fits", Geometry()) == "a b"
    assert nearest_redshift(10.0, 60.0, [("x", s) for s in nowhere]) is None
    assert nearest_redshift(np.nan, 60.0, [("x", here)]) is None
    assert nearest_redshift(10.0, 60.0, [("x", s) for s in [*nowhere, here]]) == 0.1
    assert same_object(nowhere).shape == (0, 2)
