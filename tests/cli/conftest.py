from tests.parts.estate import either_site as either_site
from tests.parts.estate import estate as estate
from tests.parts.estate import first_candidate as first_candidate
from tests.parts.estate import published as published
from tests.parts.estate import second_candidate as second_candidate
from tests.parts.estate import site as site
