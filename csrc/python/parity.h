// fastckpt._core.encode_parity and recover_leaves.

#ifndef FASTCKPT_PYTHON_PARITY_H_
#define FASTCKPT_PYTHON_PARITY_H_

#include "common.h"

namespace fastckpt {
namespace python {

// False with a Python exception set.
bool AddParity(PyObject* module);

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_PARITY_H_
