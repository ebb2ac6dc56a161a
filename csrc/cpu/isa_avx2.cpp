#include "alone.h"

namespace pxfast {

extern const Backend kBackendFp32_avx2;
extern const Backend kBackendBf16_avx2;

const Backend kBackendFp32_avx2 = make_backend<float>();
const Backend kBackendBf16_avx2 = make_backend<RoundedFloat>();

}  // namespace pxfast
