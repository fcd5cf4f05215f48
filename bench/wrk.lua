-- Prints what wrk has counted as one line of JSON, behind a mark.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "micros": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, ' ..
    '"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50.0),
    latency:percentile(99.0), errors.status, errors.connect, errors.read, errors.write,
    errors.timeout))
end
