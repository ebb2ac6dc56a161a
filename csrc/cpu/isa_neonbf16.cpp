#define PXFAST_NEON
#include "alone.h"

namespace pxfast {

extern const Backend kBackendFp32_neonbf16;
extern const Backend kBackendBf16_neonbf16;

const Backend kBackendFp32_neonbf16 = make_backend<float>();
const Backend kBackendBf16_neonbf16 = make_backend<Bf16>();

}  // namespace pxfast
