// fastckpt._core.PlanesWriter: threads that encode and write chunks while Python sees to what is written;
// and planes_read. The object of the writer owns the threads.

#include "planes_files.h"

#include <memory>
#include <vector>

#include "../core/planes_reader.h"
#include "../core/planes_writer.h"
#include "thread_object.h"

namespace fastckpt {
namespace python {

namespace {

// The members in this order: the threads end before what they work on goes.
struct Writing {
  std::unique_ptr<PlanesWriter> writer;
  OwnedThreads threads;

  void Close() {
    threads.Close([this] {
      if (writer != nullptr) writer->Close();
    });
  }
};

bool Start(Writing* writing, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"sink_fd", "sink_direct_fd", "offset", "threads", "crcs", nullptr};
  PlanesWriter::Sink sink;
  unsigned long long offset = 0;
  long threads = 0;  // required: 0 is refused below
  int crcs = 0;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "ii|$Klp", const_cast<char**>(names), &sink.fd,
                                   &sink.direct_fd, &offset, &threads, &crcs) ||
      !CheckThreads(threads))
    return false;
  sink.offset = offset;
  if (!IsAligned(offset, kAlignment) || offset > INT64_MAX) {
    PyErr_SetString(PyExc_ValueError, "offset: no multiple of 4096");
    return false;
  }
  writing->writer = std::make_unique<PlanesWriter>(sink, crcs != 0);
  if (!writing->writer->Reserve()) throw std::bad_alloc();
  writing->threads.Start(writing->writer.get(), threads);
  return true;
}

PyObject* RaiseClosed() {
  PyErr_SetString(PyExc_ValueError, "the writer is closed");
  return nullptr;
}

PyObject* Append(PyObject* self, PyObject* arguments) {
  Writing* const writing = StateOf<Writing>(self);
  int source_fd = -1;
  PyObject* rows_object = nullptr;
  PyObject* kinds_object = nullptr;
  Buffer rows;
  Buffer kinds;
  if (!PyArg_ParseTuple(arguments, "iOO", &source_fd, &rows_object, &kinds_object) ||
      !rows.GetArray(rows_object, PyBUF_SIMPLE, sizeof(RawChunk), "chunks") ||
      !rows.IsAligned(alignof(RawChunk), "chunks") ||
      !kinds.GetArray(kinds_object, PyBUF_SIMPLE, PlanesWriter::kBlocks, "kinds"))
    return nullptr;
  const size_t count = rows.size() / sizeof(RawChunk);
  if (kinds.size() / PlanesWriter::kBlocks != count) {
    PyErr_SetString(PyExc_ValueError, "kinds: not some for each chunk");
    return nullptr;
  }
  if (writing->threads.closed()) return RaiseClosed();
  const RawChunk* const chunks = reinterpret_cast<const RawChunk*>(rows.data());
  const Status status = PlanesWriter::Check(chunks, count, source_fd >= 0);
  if (!status.ok()) return Raise(status);
  try {
    writing->writer->Append(source_fd, chunks, kinds.data(), count);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_NONE;
}

// Waits until `wait` says that there is nothing to wait for. False with a Python exception set.
template <typename Wait>
bool WaitUntil(Writing* writing, PyObject* progress, Wait wait) {
  for (bool done = false; !done;) {
    if (writing->threads.closed()) return RaiseClosed() != nullptr;
    {
      WithoutGil without_gil;
      if (!writing->threads.has_threads()) writing->writer->WorkOff();
      done = wait();
    }
    if (PyErr_CheckSignals() != 0 || !ReportProgress(progress, writing->writer->progress())) return false;
  }
  return !writing->threads.closed() || RaiseClosed() != nullptr;
}

PyObject* WaitRead(PyObject* self, PyObject* arguments) {
  Writing* const writing = StateOf<Writing>(self);
  PyObject* progress = Py_None;
  if (!PyArg_ParseTuple(arguments, "|O", &progress) ||
      !WaitUntil(writing, progress, [=] { return writing->writer->WaitUntilRead(kPollInterval); }))
    return nullptr;
  Py_RETURN_NONE;
}

PyObject* Bytes(const void* from, size_t size) {
  return PyBytes_FromStringAndSize(static_cast<const char*>(from), static_cast<Py_ssize_t>(size));
}

PyObject* Take(PyObject* self, PyObject* arguments) {
  Writing* const writing = StateOf<Writing>(self);
  Py_ssize_t number = 0;
  PyObject* progress = Py_None;
  if (!PyArg_ParseTuple(arguments, "n|O", &number, &progress)) return nullptr;
  const size_t count = number > 0 ? static_cast<size_t>(number) : 0;
  if (!WaitUntil(writing, progress,
                 [=] { return writing->writer->WaitUntilWritten(count, kPollInterval); }))
    return nullptr;
  try {
    std::vector<WrittenChunk> chunks;
    std::vector<uint64_t> leaves;
    const Status status = writing->writer->Take(count, &chunks, &leaves);
    if (!status.ok()) return Raise(status);
    return Py_BuildValue("(NN)", Bytes(chunks.data(), chunks.size() * sizeof(WrittenChunk)),
                         Bytes(leaves.data(), leaves.size() * sizeof(uint64_t)));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyMethodDef writer_methods[] = {
    {"append", Append, METH_VARARGS,
     PyDoc_STR("append(source_fd, chunks, kinds, /)\n--\n\nEncode and write chunks behind the others.")},
    {"wait_read", WaitRead, METH_VARARGS,
     PyDoc_STR("wait_read(progress=None, /)\n--\n\nWait until the bytes of all chunks are no longer needed.")},
    {"take", Take, METH_VARARGS,
     PyDoc_STR("take(count, progress=None, /)\n--\n\nWait until the oldest chunks are in the file.")},
    {"close", CloseThreadObject<Writing>, METH_NOARGS, PyDoc_STR("close()\n--\n\nStop and join all threads.")},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot writer_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(NewThreadObject<Writing>)},
    {Py_tp_dealloc, reinterpret_cast<void*>(FreeThreadObject<Writing>)},
    {Py_tp_methods, writer_methods},
    {Py_tp_doc, const_cast<char*>(
                    "PlanesWriter(sink_fd, sink_direct_fd, *, offset, threads, crcs)\n--\n\n"
                    "Encodes chunks with the codec planes and writes them one behind the other.")},
    {0, nullptr}};

PyType_Spec writer_spec = {"fastckpt._core.PlanesWriter", sizeof(ThreadObject<Writing>), 0,
                           Py_TPFLAGS_DEFAULT, writer_slots};

PyObject* Read(PyObject*, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"fd", "chunks", "leaves", "threads", "direct_fd", "progress", nullptr};
  PlanesReadRequest request;
  PyObject* chunks_object = nullptr;
  PyObject* leaves_object = nullptr;
  PyObject* progress = Py_None;
  long threads = 0;
  Buffer chunks;
  Buffer leaves;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iOO|$liO", const_cast<char**>(names),
                                   &request.fd, &chunks_object, &leaves_object, &threads,
                                   &request.direct_fd, &progress) ||
      !CheckThreads(threads) ||
      !chunks.GetArray(chunks_object, PyBUF_SIMPLE, sizeof(StoredChunk), "chunks") ||
      !chunks.IsAligned(alignof(StoredChunk), "chunks"))
    return nullptr;
  request.chunks = reinterpret_cast<const StoredChunk*>(chunks.data());
  request.count = chunks.size() / sizeof(StoredChunk);
  size_t leaf_count = 0;
  uint64_t total = 0;
  const Status status = request.Check(&leaf_count, &total);
  if (!status.ok()) return Raise(status);
  request.verify = leaves_object != Py_None;
  if (request.verify) {
    if (!leaves.GetArray(leaves_object, PyBUF_WRITABLE, sizeof(uint64_t), "leaves") ||
        !leaves.IsAligned(alignof(uint64_t), "leaves"))
      return nullptr;
    if (leaves.size() / sizeof(uint64_t) != leaf_count) {
      PyErr_SetString(PyExc_ValueError, "leaves: not one for each leaf");
      return nullptr;
    }
    request.leaves = reinterpret_cast<uint64_t*>(leaves.data());
  }
  try {
    std::vector<uint8_t> good(request.count);
    request.good = good.data();
    PlanesReader reader(request);
    if (!RunJob(&reader, UsefulThreads(threads, total), progress)) return nullptr;
    return Bytes(good.data(), good.size());
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyMethodDef functions[] = {
    {"planes_read", WithKeywords(Read), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("planes_read(fd, chunks, leaves, *, threads, direct_fd=-1, progress=None)\n--\n\n"
               "Read chunks with the codec planes, and say which are good.")},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool AddPlanesFiles(PyObject* module) {
  PyObject* const type = PyType_FromModuleAndSpec(module, &writer_spec, nullptr);
  const bool added = type != nullptr && PyModule_AddObjectRef(module, "PlanesWriter", type) == 0 &&
                     PyModule_AddFunctions(module, functions) == 0;
  Py_XDECREF(type);
  return added;
}

}  // namespace python
}  // namespace fastckpt
