#include "common.h"

#include <cstring>
#include <string>

namespace fastckpt {
namespace python {

namespace {

// Below this many bytes, starting threads costs more than it gains.
constexpr uint64_t kInlineBytes = 512 * 1024;

}  // namespace

PyObject* Raise(const Status& status) {
  const unsigned long long where = status.where();
  switch (status.code()) {
    case Status::Code::kNoMemory:
      return PyErr_NoMemory();
    case Status::Code::kInvalidArgument:
      if (where == Status::kNowhere) return PyErr_Format(PyExc_ValueError, "%s", status.message());
      return PyErr_Format(PyExc_ValueError, "%s (extent %llu)", status.message(), where);
    case Status::Code::kIoError:
    case Status::Code::kThreadError:
    case Status::Code::kOk:
      break;
  }
  std::string text = std::strerror(status.error());
  text += std::string(" (") + status.message();
  if (status.code() == Status::Code::kIoError)
    text += " at file offset " + std::to_string(where);
  text += ")";
  PyObject* arguments = Py_BuildValue("(is)", status.error(), text.c_str());
  if (arguments != nullptr) {
    PyErr_SetObject(PyExc_OSError, arguments);
    Py_DECREF(arguments);
  }
  return nullptr;
}

bool CheckThreads(long threads) {
  if (threads >= 1 && threads <= kMaxThreads) return true;
  PyErr_Format(PyExc_ValueError, "threads must be between 1 and %ld, not %ld", kMaxThreads,
               threads);
  return false;
}

bool ReportProgress(PyObject* progress, uint64_t bytes) {
  if (progress == Py_None) return true;
  PyObject* const result =
      PyObject_CallFunction(progress, "K", static_cast<unsigned long long>(bytes));
  Py_XDECREF(result);
  return result != nullptr;
}

bool RunJob(Job* job, long threads, PyObject* progress) {
  Workers workers;
  // Where not one thread can be had (a limit on processes or memory), the work is done here: a
  // checkpoint that cannot be interrupted is better than none.
  if (threads == 0 || !workers.Start(job, static_cast<int>(threads)).ok()) {
    WithoutGil without_gil;
    job->Work();
  } else {
    for (;;) {
      {
        WithoutGil without_gil;
        if (workers.WaitFor(kPollInterval)) break;
      }
      if (PyErr_CheckSignals() != 0 || !ReportProgress(progress, job->progress())) {
        job->Cancel();
        WithoutGil without_gil;
        workers.Join();
        return false;
      }
    }
    WithoutGil without_gil;
    workers.Join();
  }
  return job->cancelled() || ReportProgress(progress, job->progress());
}

long UsefulThreads(long threads, uint64_t bytes) {
  if (bytes <= kInlineBytes) return 0;
  const uint64_t blocks = bytes / kChunkSize + 1;
  return blocks < static_cast<uint64_t>(threads) ? static_cast<long>(blocks) : threads;
}

PyObject* FaultList(const std::vector<ReadFault>& faults) {
  PyObject* list = PyList_New(0);
  for (const ReadFault& fault : faults) {
    if (list == nullptr) break;
    PyObject* row = Py_BuildValue("(KKKi)", static_cast<unsigned long long>(fault.extent),
                                  static_cast<unsigned long long>(fault.offset),
                                  static_cast<unsigned long long>(fault.size), fault.error);
    if (row == nullptr || PyList_Append(list, row) != 0) Py_CLEAR(list);
    Py_XDECREF(row);
  }
  return list;
}

bool GetExtents(PyObject* object, Buffer* buffer, TransferRequest* request) {
  if (!buffer->GetArray(object, PyBUF_SIMPLE, sizeof(Extent), "extents") ||
      !buffer->IsAligned(alignof(Extent), "extents"))
    return false;
  request->extents = reinterpret_cast<const Extent*>(buffer->data());
  request->extent_count = buffer->size() / sizeof(Extent);
  return true;
}

bool GetResults(PyObject* leaves_object, PyObject* crcs_object, Buffer* leaves, Buffer* crcs,
                TransferRequest* request) {
  if (leaves_object != Py_None) {
    if (!leaves->GetArray(leaves_object, PyBUF_WRITABLE, sizeof(uint64_t), "leaves") ||
        !leaves->IsAligned(alignof(uint64_t), "leaves"))
      return false;
    static uint64_t no_leaf = 0;  // an empty buffer may have no address; "hash nothing" must differ
    request->leaves =
        leaves->size() != 0 ? reinterpret_cast<uint64_t*>(leaves->data()) : &no_leaf;
    request->leaf_count = leaves->size() / sizeof(uint64_t);
  }
  if (crcs_object != Py_None) {
    if (!crcs->GetArray(crcs_object, PyBUF_WRITABLE, sizeof(uint32_t), "crcs") ||
        !crcs->IsAligned(alignof(uint32_t), "crcs"))
      return false;
    if (crcs->size() / sizeof(uint32_t) != request->extent_count) {
      PyErr_Format(PyExc_ValueError, "crcs: %zd for %zd extents",
                   static_cast<Py_ssize_t>(crcs->size() / sizeof(uint32_t)),
                   static_cast<Py_ssize_t>(request->extent_count));
      return false;
    }
    request->crcs = reinterpret_cast<uint32_t*>(crcs->data());
  }
  return true;
}

}  // namespace python
}  // namespace fastckpt
