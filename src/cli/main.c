#include <stdio.h>
int main(void) { printf("tessera " TSR_VERSION " (" TSR_COMMIT ")\n"); return 0; }
