/* A clock of the day that is CLOCK_SHIFT seconds ahead, for one process by LD_PRELOAD.

   Monotonic clocks, relative sleeps and the times of files stay true. (Debian's libfaketime 0.9.10
   does not serve: with true monotonic clocks Python's time.sleep fails in it with EINVAL.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    const char *seconds = getenv("CLOCK_SHIFT");
    return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += shift();
    return failed;
}

time_t time(time_t *now) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (now)
        *now = t.tv_sec;
    return t.tv_sec;
}

/* Its deadline is a time of day, computed from the shifted clock. */
int sem_timedwait(sem_t *semaphore, const struct timespec *deadline) {
    struct timespec true_deadline = *deadline;
    true_deadline.tv_sec -= shift();
    int (*next)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, "sem_timedwait");
    return next(semaphore, &true_deadline);
}
