package index

import (
	"context"
	"time"
)

// Ended returns the IDs of runs that have ended and were created before a time, oldest first, at most limit.
func (x *Index) Ended(ctx context.Context, created time.Time, limit int) ([]string, error) {
	if err := x.wait(ctx); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.table.settle()
	var ids []string
	for i, p := range x.table.places {
		if p.created >= created.UnixNano() || len(ids) == limit {
			break
		}
		if x.table.kinds[i].final {
			ids = append(ids, p.id.String())
		}
	}
	return ids, nil
}
