// What the bindings share: buffers, the GIL, and errors as exceptions.

#ifndef FASTCKPT_PYTHON_COMMON_H_
#define FASTCKPT_PYTHON_COMMON_H_

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../core/bytes.h"
#include "../core/status.h"
#include "../core/transfer.h"
#include "../core/workers.h"

namespace fastckpt {
namespace python {

// How long Ctrl-C and the progress callback may have to wait.
constexpr std::chrono::milliseconds kPollInterval(20);
constexpr long kMaxThreads = 1024;

// A contiguous buffer, released at the end of the scope.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // False with a Python exception set.
  bool Get(PyObject* object, int flags) {
    held_ = PyObject_GetBuffer(object, &view_, flags) == 0;
    return held_;
  }
  // As Get(); also checks that the buffer is an array of items of this size.
  bool GetArray(PyObject* object, int flags, size_t item, const char* name) {
    if (!Get(object, flags)) return false;
    if (size() % item == 0) return true;
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes are no multiple of %zd", name, view_.len,
                 static_cast<Py_ssize_t>(item));
    return false;
  }
  bool IsAligned(size_t unit, const char* name) const {
    if (size() == 0 || fastckpt::IsAligned(AddressOf(view_.buf), unit)) return true;
    PyErr_Format(PyExc_ValueError, "%s: must be aligned to %zd bytes", name,
                 static_cast<Py_ssize_t>(unit));
    return false;
  }

  uint8_t* data() const { return static_cast<uint8_t*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_ = {};
  bool held_ = false;
};

class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Sets the exception for a status that is not ok. Returns null for the caller to return.
PyObject* Raise(const Status& status);

// False with a Python exception set unless this is a number of threads.
bool CheckThreads(long threads);

// Calls `progress`, unless it is None. False with the exception that it raised.
bool ReportProgress(PyObject* progress, uint64_t bytes);

// Runs a job to its end, with no thread of its own where `threads` is 0. False with a Python
// exception set when it was interrupted or when `progress` raised; no thread is left in any case.
bool RunJob(Job* job, long threads, PyObject* progress);

// No more threads than there are blocks to share out, and none for very little.
long UsefulThreads(long threads, uint64_t bytes);

// By way of a plain function pointer, which tells the compiler that the type is meant to change.
inline PyCFunction WithKeywords(PyCFunctionWithKeywords function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// What Python is told of the parts that could not be read: a list of tuples of four integers.
PyObject* FaultList(const std::vector<ReadFault>& faults);

// The two buffers of results that a transfer fills, if they are wanted. Each object may be None.
bool GetResults(PyObject* leaves_object, PyObject* crcs_object, Buffer* leaves, Buffer* crcs,
                TransferRequest* request);

// The rows of four u64 that are extents.
bool GetExtents(PyObject* object, Buffer* buffer, TransferRequest* request);

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_COMMON_H_
