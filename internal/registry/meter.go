package registry

import "sync"

// meter adds up what concurrent work reports.
type meter struct {
	mu          sync.Mutex
	report      func(done, total int64)
	done, total int64
}

func newMeter(report func(done, total int64)) *meter { return &meter{report: report} }

func (m *meter) add(done, total int64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += done
	m.total += total
	m.report(m.done, m.total)
}
