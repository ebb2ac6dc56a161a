#include "alone.h"

namespace pxfast {

extern const Backend kBackendFp32_avx512bf16;
extern const Backend kBackendBf16_avx512bf16;

const Backend kBackendFp32_avx512bf16 = make_backend<float>();
const Backend kBackendBf16_avx512bf16 = make_backend<Bf16>();

}  // namespace pxfast
