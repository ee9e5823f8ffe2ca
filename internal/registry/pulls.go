package registry

import (
	"context"
	"maps"
	"sync"
	"time"
)

const (
	// maxPulls is how many pulls wait to be stored; more are forgotten.
	maxPulls = 10_000
	// pullsBatch is how many are stored in one transaction.
	pullsBatch = 200
)

// pulls remember when manifests were last pulled until that is stored, so that a pull costs no write. A
// crash forgets those of the last minute.
type pulls struct {
	mu sync.Mutex
	at map[int64]int64 // Unix milliseconds by row
}

func (p *pulls) note(row int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[int64]int64{}
	}
	if _, ok := p.at[row]; ok || len(p.at) < maxPulls {
		p.at[row] = time.Now().UnixMilli()
	}
}

func (p *pulls) last(row int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[row]
}

// storePulls stores when manifests were last pulled.
func (s *Store) storePulls(ctx context.Context) error {
	s.pulls.mu.Lock()
	waiting := maps.Clone(s.pulls.at)
	s.pulls.mu.Unlock()
	for len(waiting) > 0 {
		batch := map[int64]int64{}
		for row, at := range waiting {
			if len(batch) == pullsBatch {
				break
			}
			batch[row] = at
			delete(waiting, row)
		}
		err := s.write.do(ctx, func(t *tx) error {
			for row, at := range batch {
				if err := t.exec(`UPDATE manifest SET pulled = max(pulled, ?) WHERE id = ?`, at, row); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.pulls.mu.Lock()
		for row, at := range batch {
			if s.pulls.at[row] == at {
				delete(s.pulls.at, row)
			}
		}
		s.pulls.mu.Unlock()
	}
	return nil
}
