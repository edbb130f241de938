"""GRIB2 messages that ecCodes writes for tests."""

import eccodes
import numpy as np

RAIN = np.arange(20, dtype=float).reshape(4, 5)
MRMS_RATE, MRMS_HOUR = (209, 6, 1), (209, 6, 37)
FLUX, RATE, AMOUNT = (0, 1, 52), (0, 1, 7), (0, 1, 8)
END = "OfEndOfOverallTimeInterval"


def message(values=RAIN, product=MRMS_RATE, hour=15, **keys):
    """One message valid at 2022-08-09 ``hour``, on 0.1 degree cells from 50 N, 355 E."""
    rows, columns = np.shape(values)
    discipline, category, number = product
    defaults = {
        "discipline": discipline,
        "dataDate": 20220809,
        "hour": hour,
        "minute": 0,
        "second": 0,
        "productDefinitionTemplateNumber": 0,
        "parameterCategory": category,
        "parameterNumber": number,
        "forecastTime": 0,
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": 50.0,
        "latitudeOfLastGridPointInDegrees": 50.0 - 0.1 * (rows - 1),
        "longitudeOfFirstGridPointInDegrees": 355.0,
        "longitudeOfLastGridPointInDegrees": 355.0 + 0.1 * (columns - 1),
        "iDirectionIncrementInDegrees": 0.1,
        "jDirectionIncrementInDegrees": 0.1,
        "bitsPerValue": 24,
    }
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    try:
        for key, value in (defaults | keys).items():
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set_values(handle, np.asarray(values, float).ravel())
        return eccodes.codes_get_message(handle)
    finally:
        eccodes.codes_release(handle)


def summed(hours, hour=15, statistic=1, unit=1, **keys):
    """Keys of a statistic over the hours up to 2022-08-09 ``hour``."""
    return {
        "productDefinitionTemplateNumber": 8,
        "typeOfStatisticalProcessing": statistic,
        "indicatorOfUnitForTimeRange": unit,
        "lengthOfTimeRange": hours,
        **{f"year{END}": 2022, f"month{END}": 8, f"day{END}": 9},
        **{f"hour{END}": hour, f"minute{END}": 0, f"second{END}": 0},
        "hour": hour - 1,
        **keys,
    }


def write(path, *messages):
    path.write_bytes(b"".join(messages))
    return path
