#include "alone.h"

namespace pxfast {

extern const Backend kBackendFp32_avx512;
extern const Backend kBackendBf16_avx512;

const Backend kBackendFp32_avx512 = make_backend<float>();
const Backend kBackendBf16_avx512 = make_backend<RoundedFloat>();

}  // namespace pxfast
